"""Asks a server over plain HTTP whether it is ready, what it serves, and how it is doing.

Of a vLLM server the figures are read from its /metrics (Prometheus text).
"""

from __future__ import annotations

import functools
import http.client
import json
import math
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from fgbench.backends.backend import BackendError, ReadyServer, Report

POLL_SECONDS = 0.1
ANSWER_SECONDS = 5.0
ANSWER_BYTES = 1024**2
_SAMPLE = re.compile(r"^vllm:(?P<name>\w+)(?:\{(?P<labels>.*)\})?\s+(?P<value>\S+)")
_MODEL = re.compile(r'model_name="((?:[^"\\]|\\.)*)"')
DRAIN_SECONDS = 60.0
"""For what an interrupted or failed load left at the server."""
QUIET_SECONDS = 1.0
"""A wait as short as this is not worth a word."""
SAY_SECONDS = 10.0
"""Between two words of a wait."""
STATES = ("running", "waiting", "swapped")


def base_url(text: str) -> str:
    """``http://host:port`` of what a user gives, with or without the scheme, ``/v1`` or a slash behind.

    Raises ValueError for anything else.
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
        raise ValueError(f"a URL must look like http://127.0.0.1:10000, not {text!r}")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return f"{parts.scheme}://{parts.netloc}{path}"


def wait_until_ready(
    url: str, *, timeout: float, report: Report, alive: Callable[[], bool] = lambda: True
) -> None:
    """Polls /health until it says 200, passing on what the server says it is doing meanwhile.

    A server without /health is ready when it answers at all. Raises BackendError when the process behind
    it ends, or after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    said = ""
    while True:
        if not alive():
            raise BackendError("the server ended before it was ready")
        status, body = _get(f"{url}/health")
        if status is not None and (status == 200 or status in (404, 405)):
            return
        if status is not None and (doing := _doing(body)) != said:
            said = doing
            report(doing)
        if time.monotonic() > deadline:
            what = f"answers {status}: {said}" if status else "does not answer"
            raise BackendError(f"the server at {url} is not ready after {timeout:g} s: it {what}")
        time.sleep(POLL_SECONDS)


def ask_served(url: str, wanted: str | None = None) -> ReadyServer:
    """What /v1/models says of the model ``wanted``, or of the first one.

    A server without such a list (the old /generate servers) serves a model of no name. Raises
    BackendError when it has models but not the wanted one.
    """
    status, body = _get(f"{url}/v1/models")
    models = body.get("data") if status == 200 and isinstance(body, dict) else None
    known = [m for m in models if isinstance(m, dict) and "id" in m] if isinstance(models, list) else []
    if not known:
        return ReadyServer(url, wanted or "")
    names = [str(m["id"]) for m in known]
    if wanted is not None and wanted not in names:
        raise BackendError(f"the server at {url} serves {', '.join(names)}, not {wanted}")
    model = known[names.index(wanted) if wanted else 0]
    return ReadyServer(url, str(model["id"]), _count(model.get("vocab_size")))


def ask_stats(url: str) -> dict[str, float] | None:
    """The numbers of our own server's /stats; None where there is no such thing."""
    try:
        body = read_stats(url)
    except StatsError:
        return None
    if "work_steps" not in body:
        return None
    return {
        key: value
        for key, value in body.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


class StatsError(BackendError):
    """There are no figures to be had from the server; the message says why."""


class SilentServer(StatsError):
    """It does not answer: asking again may help."""


class NotReady(SilentServer):
    """It answers, but serves nobody yet, or no longer."""


def read_stats(url: str) -> dict[str, Any]:
    """All that our own server's /stats says, plain JSON. Raises StatsError."""
    status, body = _get(f"{url}/stats")
    if status is None:
        raise SilentServer(f"nobody answers at {url}")
    if status == 503:
        raise NotReady(f"the server at {url} is not ready: {_doing(body)}")
    if status != 200 or not isinstance(body, dict) or "num_device_blocks" not in body:
        raise StatsError(f"the server at {url} is not of fastgen: it has no /stats")
    return body


def read_metrics(url: str) -> dict[str, Any]:
    """As ``read_stats``, from the /metrics of a vLLM server as far as they go. Raises StatsError."""
    status, body = _get(f"{url}/metrics")
    if status is None:
        raise SilentServer(f"nobody answers at {url}")
    found = from_vllm(body) if status == 200 and isinstance(body, str) else {}
    if not found:
        raise StatsError(
            f"the server at {url} has neither fastgen's /stats nor vLLM's /metrics: there is nothing to watch"
        )
    return found


_headers: dict[str, dict[str, str]] = {}
"""By the beginning of a URL: what every question there is asked with."""


def ask_with(url: str, headers: Mapping[str, str]) -> None:
    """Sends ``headers`` with every question to the server at ``url`` from now on."""
    _headers[url] = dict(headers)


def _get(url: str) -> tuple[int | None, Any]:
    """Status and JSON (or text) of the answer; None where there is no server."""
    known = next((found for start, found in _headers.items() if url.startswith(f"{start}/")), {})
    try:
        request = urllib.request.Request(url, headers=known)
        with _opener().open(request, timeout=ANSWER_SECONDS) as response:
            return response.status, _parse(response.read(ANSWER_BYTES))
    except urllib.error.HTTPError as error:
        with error:
            return error.code, _parse(error.read(ANSWER_BYTES))
    except (OSError, ValueError, http.client.HTTPException):  # refused, reset, timed out, no HTTP
        return None, None


@functools.cache
def _opener() -> urllib.request.OpenerDirector:
    """One for all questions: from Python 3.12 on, making one loads all TLS certificates (some 50 ms)."""
    # The empty ProxyHandler ignores proxies that the environment names.
    return urllib.request.build_opener(urllib.request.ProxyHandler({}), _SameHost())


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Goes along with no redirection to another host: headers may hold a key."""

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


def _doing(body: Any) -> str:
    """The sentence in a 503 of /health, whatever its key."""
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
}
"""Over engines and finish reasons."""
SHARES: Mapping[str, str] = {
    "kv_cache_usage_perc": "device_used_share",
    "gpu_cache_usage_perc": "device_used_share",
    "cpu_cache_usage_perc": "host_used_share",
}
"""0 to 1, whatever their names say; of several engines the fullest one's. The last two are older vLLM's."""


def from_vllm(text: str) -> dict[str, Any]:
    """From Prometheus' text format. Empty where there is nothing of vLLM's in it."""
    found: dict[str, Any] = {}
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        if sample is None:
            continue
        try:
            value = float(sample["value"])
        except ValueError:
            continue
        if not math.isfinite(value):
            continue
        name = sample["name"]
        if (key := SUMMED.get(name)) is not None:
            found[key] = found.get(key, 0.0) + value
        elif (key := SHARES.get(name)) is not None:
            found[key] = max(found.get(key, 0.0), value)
        if model := _MODEL.search(sample["labels"] or ""):
            found.setdefault("model", model[1])
    return found


def ask_requests(url: str) -> int | None:
    """How many requests are at the server, waiting or running; None where it does not say: ours and vLLM do.

    Raises SilentServer where nobody answers, which a server that is busy with a long step may not either.
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
        told = [stats[state] for state in STATES if state in stats]
        return int(sum(told)) if told else None
    return None


def wait_until_idle(
    url: str, *, timeout: float, report: Report = lambda line: None, alive: Callable[[], bool] = lambda: True
) -> None:
    """Until no request is left at the server; at once where it does not say. ``report`` hears of a wait that
    takes longer than ``QUIET_SECONDS``.

    Raises BackendError when the process behind it ends, or after ``timeout`` seconds; SilentServer where it
    does not answer then.
    """
    began = time.monotonic()
    say = began + QUIET_SECONDS
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
            raise BackendError("the server ended while its last requests were awaited")
        now = time.monotonic()
        if now > began + timeout:
            if left is None:
                raise SilentServer(f"the server at {url} has not answered for {timeout:g} s")
            raise BackendError(f"the server at {url} still has {_requests(left)} after {timeout:g} s")
        if now >= say:
            report(f"{waiting}, at most {began + timeout - now:.0f} s")
            say = now + SAY_SECONDS
        time.sleep(POLL_SECONDS)


def _requests(count: int) -> str:
    return f"{count:,} request{'' if count == 1 else 's'}"
