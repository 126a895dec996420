"""Queries a server over HTTP: whether it is ready, which model it serves, and its statistics.

fastgen's statistics come from /stats, vLLM's from /metrics (Prometheus text).
"""

from __future__ import annotations

import functools
import http.client
import json
import math
import re
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from fgbench.backends.backend import BackendError, ReadyServer, Report
from fgbench.metrics.accounts import ANALYTIC_DEVICE
from fgbench.spec.access import OPEN, Access

POLL_SECONDS = 0.1
ANSWER_SECONDS = 5.0
ANSWER_BYTES = 1024**2
_SAMPLE = re.compile(r"^(?P<name>[\w:]+)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_API_PATH = re.compile(r"(/v1(/(chat/)?completions|/models)?)?/*$")
"""An API's path at the end of a URL, such as ``/v1`` or ``/v1/chat/completions``."""
_MODEL = re.compile(r'model_name="((?:[^"\\]|\\.)*)"')
DRAIN_SECONDS = 60.0
"""Seconds to wait for requests that an interrupted or failed load left at the server."""
QUIET_SECONDS = 1.0
"""A wait up to this many seconds is not reported."""
SAY_SECONDS = 10.0
"""Seconds between two reports of a wait."""
ABSENT = (404, 405)
"""Statuses of a path that the server does not have."""
DENIED = (401, 403)
"""Statuses of a server that refuses access."""
SAID_CHARACTERS = 500
STATES = ("running", "waiting", "swapped")


def base_url(text: str) -> str:
    """Return ``http://host:port`` for a URL with or without the scheme, an API's path or a slash at the end.

    Raises ValueError if ``text`` is not such a URL.
    """
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment or parts.username:
        raise ValueError(f"{text!r} is not a URL of a server: write it like http://127.0.0.1:10000")
    path = _API_PATH.sub("", parts.path)
    return f"{parts.scheme}://{parts.netloc}{path}"


def wait_until_ready(
    url: str,
    *,
    timeout: float,
    report: Report,
    alive: Callable[[], bool] = lambda: True,
    waiting: Callable[[], None] = lambda: None,
) -> None:
    """Poll /health until its status is 200. Report what the server is doing during the wait.

    A server without /health is ready when /v1/models answers with status 200, or does not exist either.

    Args:
        timeout: Maximum seconds to wait.
        report: Called with what /health says, when that changes.
        alive: Returns whether the server process runs.
        waiting: Called between two polls.

    Raises:
        BackendError: the server process ended, the server refuses access, or ``timeout`` seconds have passed.
    """
    deadline = time.monotonic() + timeout
    reported = ""
    while True:
        if not alive():
            raise BackendError("the server ended before it was ready")
        status, body = ask(f"{url}/health")
        if status in ABSENT:
            status, body = ask(f"{url}/v1/models")
        if status is not None and (status == 200 or status in ABSENT):
            return
        if status in DENIED:  # waiting would not change the answer
            raise BackendError(_denial(url, status, body))
        if status is None and (problem := tls_problem(url)) is not None:
            raise BackendError(f"the server at {url} cannot be reached: {problem}")
        if status is not None and (activity := _activity(body)) != reported:
            reported = activity
            report(activity)
        if time.monotonic() > deadline:
            answer = f"answers {status}: {reported}" if status else "does not answer"
            raise BackendError(f"the server at {url} is not ready after {timeout:g} s: it {answer}")
        waiting()
        time.sleep(POLL_SECONDS)


def ask_served(url: str, wanted: str | None = None) -> ReadyServer:
    """Ask /v1/models about the model ``wanted``, or about the first model.

    A server without /v1/models (the old /generate servers) has a model without a name.

    Raises:
        BackendError: the server has models, but not ``wanted``; or it refuses access.
    """
    status, body = ask(f"{url}/v1/models")
    if status in DENIED:
        raise BackendError(_denial(url, status, body))
    models = body.get("data") if status == 200 and isinstance(body, dict) else None
    listed = [m for m in models if isinstance(m, dict) and "id" in m] if isinstance(models, list) else []
    if not listed:
        return ReadyServer(url, wanted or "")
    names = [str(m["id"]) for m in listed]
    if wanted is not None and wanted not in names:
        raise BackendError(
            f"the server at {url} serves {', '.join(names)}, not {wanted}: give another --model"
        )
    model = listed[names.index(wanted) if wanted else 0]
    return ReadyServer(
        url,
        str(model["id"]),
        _count(model.get("vocab_size")),
        str(model.get("owned_by") or ""),
        _count(model.get("max_model_len")),
    )


def ask_stats(url: str) -> dict[str, float | str] | None:
    """Return the numbers of a fastgen server's /stats, and the name of its analytic device, if it has one.

    Returns None if the server has no /stats.
    """
    try:
        body = read_stats(url)
    except StatsError:
        return None
    if "work_steps" not in body:
        return None
    return {
        key: value
        for key, value in body.items()
        if (isinstance(value, int | float) and not isinstance(value, bool))
        or (key == ANALYTIC_DEVICE and isinstance(value, str))
    }


class StatsError(BackendError):
    """The server gives no statistics; the message says why."""


class SilentServer(StatsError):
    """The server does not answer; a later attempt may succeed."""


class AccessDenied(StatsError):
    """The server wants a key, or does not answer this client."""


class NotReady(SilentServer):
    """The server answers, but does not accept requests yet, or no longer."""


def read_stats(url: str) -> dict[str, Any]:
    """Return a fastgen server's /stats as plain JSON. Raises StatsError."""
    status, body = ask(f"{url}/stats")
    if status is None:
        raise SilentServer(f"no server answers at {url}")
    if status == 503:
        raise NotReady(f"the server at {url} is not ready: {_activity(body)}")
    if status in DENIED:
        raise AccessDenied(_denial(url, status, body))
    if status != 200 or not isinstance(body, dict) or "num_device_blocks" not in body:
        raise StatsError(f"the server at {url} is not a fastgen server: it has no /stats")
    return body


def read_metrics(url: str) -> dict[str, Any]:
    """Return the statistics of a vLLM server's /metrics, under the names of /stats. Raises StatsError."""
    status, body = ask(f"{url}/metrics")
    if status is None:
        raise SilentServer(f"no server answers at {url}")
    if status in DENIED:
        raise AccessDenied(_denial(url, status, body))
    found = from_vllm(body) if status == 200 and isinstance(body, str) else {}
    if not found:
        raise StatsError(
            f"the server at {url} has neither fastgen's /stats nor vLLM's /metrics: there is nothing to watch"
        )
    return found


_access: dict[str, Access] = {}
"""Beginning of a URL -> what its server wants, for all queries of this module to it."""


def ask_with(url: str, access: Access) -> None:
    """Use ``access`` for all further queries of this module to the server at ``url``."""
    _access[url] = access


def _access_to(url: str) -> Access:
    return next((found for start, found in _access.items() if url.startswith(f"{start}/")), OPEN)


def ask(url: str, method: Literal["GET", "POST"] = "GET") -> tuple[int | None, Any]:
    """Return the status and the JSON (or text) of the answer; None if no server answers.

    A POST has an empty body.
    """
    access = _access_to(url)
    try:
        request = urllib.request.Request(
            url, headers=dict(access.headers), method=method, data=None if method == "GET" else b""
        )
        with _opener(access.ca_file, access.insecure).open(request, timeout=ANSWER_SECONDS) as response:
            return response.status, _parse(response.read(ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parse(error.read(ANSWER_BYTES))
    except (OSError, ValueError, http.client.HTTPException):  # refused, reset, timed out, not HTTP
        return None, None


@functools.cache
def _opener(ca_file: Path | None, insecure: bool) -> urllib.request.OpenerDirector:
    """Return the opener for all queries. Cached: since Python 3.12, making one takes about 50 ms."""
    # The empty ProxyHandler ignores proxies in environment variables.
    handlers = [urllib.request.ProxyHandler({}), _SameHost()]
    if ca_file is not None or insecure:
        handlers.append(urllib.request.HTTPSHandler(context=Access({}, ca_file, insecure).tls()))
    return urllib.request.build_opener(*handlers)


def tls_problem(url: str) -> str | None:
    """Return why TLS fails between this client and a server that listens; None if it does not fail."""
    parts = urlsplit(url)
    host, is_secure = parts.hostname or "", parts.scheme == "https"
    try:
        with socket.create_connection(
            (host, parts.port or (443 if is_secure else 80)), ANSWER_SECONDS
        ) as connection:
            access = _access_to(f"{url}/") if is_secure else Access(insecure=True)
            with access.tls().wrap_socket(connection, server_hostname=host):
                return None if is_secure else "it speaks TLS: write https:// in its URL"
    except ssl.SSLCertVerificationError as error:
        return (
            f"its certificate is not trusted ({error.verify_message}): give the file of its authority with "
            "--ca-file, or accept any certificate with --insecure"
        )
    except ssl.SSLError as error:
        if not is_secure:
            return None
        return f"TLS fails ({error.reason or error}): if it does not speak TLS, write http:// in its URL"
    except OSError:
        return None  # it does not listen


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follows no redirection to another host, because the headers may hold an API key."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urlsplit(newurl).netloc != urlsplit(req.full_url).netloc:
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=lambda name: None, parse_float=_finite)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "replace")


def _finite(text: str) -> float | None:
    number = float(text)
    return number if math.isfinite(number) else None


def _denial(url: str, status: int | None, body: Any) -> str:
    """Return the sentence about a server that refuses access."""
    its_words = _activity(body)[:SAID_CHARACTERS]
    hint = "give its key with --api-key or --header, or in $FGBENCH_API_KEY"
    if status == 401 or not its_words:
        return f"the server at {url} answers {status}: {hint}"
    return f"the server at {url} answers {status}: {its_words}"


def _activity(body: Any) -> str:
    """Return the sentence in a 503 answer of /health, which servers put under different keys."""
    if isinstance(body, dict):
        error = body.get("error")
        if isinstance(error, dict):
            body = error
        for key in ("message", "detail", "doing", "status"):
            if isinstance(body.get(key), str):
                return str(body[key])
    return " ".join(str(body).split())[:200]


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and value > 0 else None


SUMMED: Mapping[str, str] = {
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "num_requests_swapped": "swapped",
    "prompt_tokens_total": "prompt_tokens",
    "generation_tokens_total": "generated_tokens",
    "num_preemptions_total": "preemptions",
    "request_success_total": "finished",
    "num_running_reqs": "running",
    "num_queue_reqs": "waiting",
    "num_retracted_requests_total": "preemptions",
    "num_requests_total": "finished",
}
"""Name in /metrics of vLLM or SGLang -> name in /stats, for counts that are summed over engines and finish
reasons."""
SHARES: Mapping[str, str] = {
    "kv_cache_usage_perc": "device_used_share",
    "gpu_cache_usage_perc": "device_used_share",
    "cpu_cache_usage_perc": "host_used_share",
    "token_usage": "device_used_share",
}
"""Name in /metrics -> name here, for shares from 0 to 1 (not percent, in spite of their names).

The largest share of all engines counts. Two names are those of older vLLM versions, the last is SGLang's.
"""


def from_vllm(text: str) -> dict[str, Any]:
    """Read vLLM's or SGLang's statistics from Prometheus' text format. Empty if the text has none."""
    found: dict[str, Any] = {}
    for series, labels, value in metric_samples(text):
        prefix, _, name = series.partition(":")
        if prefix not in ("vllm", "sglang"):
            continue
        if (key := SUMMED.get(name)) is not None:
            found[key] = found.get(key, 0.0) + value
        elif (key := SHARES.get(name)) is not None:
            found[key] = max(found.get(key, 0.0), value)
        if model := _MODEL.search(labels):
            found.setdefault("model", model[1])
    return found


def metric_samples(text: str) -> list[tuple[str, str, float]]:
    """Read Prometheus' text format: name, labels as text, and value of each finite sample."""
    found = []
    for line in text.splitlines():
        if (sample := _SAMPLE.match(line)) is None:
            continue
        try:
            value = float(sample["value"])
        except ValueError:
            continue
        if math.isfinite(value):
            found.append((sample["name"], sample["labels"] or "", value))
    return found


def ask_requests(url: str) -> int | None:
    """Return the number of waiting and running requests; None if the server does not report it.

    fastgen and vLLM report it. Raises SilentServer if the server does not answer. That can also happen
    during a long step.
    """
    for read in (read_stats, read_metrics):
        try:
            stats = read(url)
        except NotReady:
            continue
        except SilentServer:
            raise
        except StatsError:
            continue
        counts = [stats[state] for state in STATES if state in stats]
        return int(sum(counts)) if counts else None
    return None


def wait_until_idle(
    url: str, *, timeout: float, report: Report = lambda line: None, alive: Callable[[], bool] = lambda: True
) -> None:
    """Wait until the server has no request. Returns at once if the server does not report their number.

    Reports a wait that takes longer than ``QUIET_SECONDS``.

    Raises:
        BackendError: the server process ended, or still has requests after ``timeout`` seconds.
        SilentServer: the server does not answer after ``timeout`` seconds.
    """
    began = time.monotonic()
    next_report = began + QUIET_SECONDS
    while True:
        try:
            left = ask_requests(url)
        except SilentServer:
            left, waiting = None, f"waiting for {url} to answer"
        else:
            if not left:
                return
            waiting = f"waiting for {_requests(left)} at {url} to end"
        if not alive():
            raise BackendError("the server ended before its last requests had ended")
        now = time.monotonic()
        if now > began + timeout:
            if left is None:
                raise SilentServer(f"the server at {url} has not answered for {timeout:g} s")
            raise BackendError(f"the server at {url} still has {_requests(left)} after {timeout:g} s")
        if now >= next_report:
            report(f"{waiting}, at most {began + timeout - now:.0f} s")
            next_report = now + SAY_SECONDS
        time.sleep(POLL_SECONDS)


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"
