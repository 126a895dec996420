"""Who may use the server: keys, names, web pages, types of bodies, open requests of one client."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from fgengine.server import access
from fgengine.server.access import Rules, exposure, keys_in, name_of, names_in, type_refusal
from fgengine.server.options import ServerOptions
from fgengine.server.routes import HEALTH

BODY = {"prompt": "abc", "max_tokens": 2}


@pytest.mark.parametrize(
    "header",
    [
        *("localhost", "LOCALHOST.:10000", "127.0.0.1:10000", "127.9.9.9", "[::1]:10000", "[::1]"),
        *("192.168.1.20:10000", "[2001:db8::1]:80", "[fe80::1%eth0]:80", socket.gethostname(), None, ""),
        *("gpu-box:1", "GPU-BOX", "api.example.org"),
    ],
)
def test_the_servers_own_names_are_allowed(header: str | None) -> None:
    assert Rules.of("gpu-box", (), ("api.example.org",)).host_refusal(header) is None


@pytest.mark.parametrize(
    "header",
    [
        *(
            "attacker.example",
            "attacker.example:10000",
            "127.0.0.1.attacker.example",
            "localhost.attacker.example",
        ),
        *("localhostx", "api.example.org.attacker.example", "xapi.example.org", "127.0.0.1@attacker.example"),
        *("localhost, attacker.example", "localhost/..", "[::1", "a b", "localhost:1:2", "127.1", "\udc80"),
    ],
)
def test_other_names_are_refused(header: str) -> None:
    refusal = Rules.of("127.0.0.1", (), ("api.example.org",)).host_refusal(header)
    assert refusal is not None
    assert (refusal.status, refusal.code) == (403, "host_not_allowed")
    assert "--allowed-hosts" in refusal.message


def test_a_star_allows_every_name_but_no_page_of_another_origin() -> None:
    rules = Rules.of("0.0.0.0", (), ("*",))
    assert rules.host_refusal("attacker.example") is None
    assert rules.page_refusal("POST", "gpu:1", "http://gpu:3000", None, None) is None
    assert rules.page_refusal("POST", "gpu:1", "http://attacker.example", None, None) is not None


PAGES = [
    ("POST", "localhost:10000", "http://localhost:3000", None, None, True),
    ("POST", "127.0.0.1:10000", "http://localhost:3000", None, None, True),
    ("POST", "[::1]:10000", "http://127.0.0.1", None, None, True),
    ("POST", "192.168.1.20:10000", "http://192.168.1.20:10000", None, None, True),
    ("POST", "localhost:10000", "https://ui.example.org", None, None, True),
    ("POST", "localhost:10000", None, None, None, True),
    ("POST", "localhost:10000", None, "same-origin", "cors", True),
    ("GET", "localhost:10000", None, "none", "navigate", True),
    ("GET", "localhost:10000", None, "cross-site", "navigate", True),
    ("GET", "localhost:10000", None, "cross-site", "no-cors", False),
    ("POST", "localhost:10000", None, "cross-site", "navigate", False),
    ("POST", "localhost:10000", "http://attacker.example", None, None, False),
    ("GET", "localhost:10000", "http://attacker.example", "cross-site", "cors", False),
    ("OPTIONS", "localhost:10000", "http://attacker.example", None, None, False),
    ("POST", "localhost:10000", "null", None, None, False),
    ("POST", "localhost:10000", "", None, None, False),
    ("POST", "localhost:10000", "http://[", None, None, False),
    ("POST", "localhost:10000", "http://6.6.6.6", None, None, False),
    ("POST", "192.168.1.20:10000", "http://192.168.1.21", None, None, False),
    ("POST", "192.168.1.20:10000", "http://localhost", None, None, False),
    ("POST", "localhost:10000", "http://localhost.attacker.example", None, None, False),
    ("POST", "localhost:10000", "https://ui.example.org@attacker.example", None, None, False),
    ("POST", None, "http://attacker.example", None, None, False),
]


@pytest.mark.parametrize(("method", "host", "origin", "site", "mode", "allowed"), PAGES)
def test_pages_of_other_origins_are_refused(
    method: str, host: str | None, origin: str | None, site: str | None, mode: str | None, allowed: bool
) -> None:
    refusal = Rules.of("127.0.0.1", (), ("ui.example.org",)).page_refusal(method, host, origin, site, mode)
    assert (refusal is None) == allowed
    if refusal is not None:
        assert (refusal.status, refusal.code) == (403, "origin_not_allowed")


@pytest.mark.parametrize(
    ("content_type", "allowed"),
    [
        *((None, True), ("application/json", True), ("Application/JSON; charset=UTF-8", True)),
        *(('application/json; charset="utf-8"', True), ("application/vnd.api+json", True)),
        *(("application/octet-stream", True), ("text/plain", False), ("text/plain;charset=UTF-8", False)),
        *(("TEXT/PLAIN ; x=application/json", False), ("multipart/form-data; boundary=x", False)),
        *(("application/x-www-form-urlencoded", False), ("application/json; charset=latin-1", False)),
    ],
)
def test_bodies_that_a_page_can_send_without_asking_are_refused(
    content_type: str | None, allowed: bool
) -> None:
    refusal = type_refusal(content_type)
    assert (refusal is None) == allowed
    if refusal is not None:
        assert refusal.status == 415
        assert "send the header 'Content-Type: application/json'" in refusal.message


def test_each_of_several_keys_is_enough_and_none_else() -> None:
    rules = Rules.of("127.0.0.1", keys_in("alpha, beta"))
    assert [rules.key_number(f"Bearer {key}") for key in ("alpha", "beta")] == [0, 1]
    assert rules.key_number("bearer  beta ") == 1
    for wrong in (
        None,
        "",
        "Bearer",
        "Bearer ",
        "Bearer alph",
        "Bearer alphaa",
        "Basic alpha",
        "alpha",
        "Bearer \udcff",
    ):
        refusal = rules.key_refusal(wrong)
        assert refusal is not None
        assert (refusal.status, refusal.code) == (401, "invalid_api_key")
    assert Rules.of("127.0.0.1").key_refusal(None) is None


def test_all_keys_are_compared_whichever_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So the time does not say which key fits, nor how much of it."""
    compared: list[tuple[int, int]] = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(access.hmac, "compare_digest", compare)
    rules = Rules.of("127.0.0.1", ("a", "b" * 50, "c"))
    for given in ("a", "c", "wrong", "b" * 50):
        compared.clear()
        rules.key_number(f"Bearer {given}")
        assert compared == [(32, 32)] * 3


def test_a_name_is_read_without_its_port() -> None:
    assert [name_of(text) for text in ("A.b.:80", "[::1]:80", "[::1]", "a:b", ":80")] == [
        "a.b",
        "::1",
        "::1",
        None,
        None,
    ]
    assert names_in(["Gpu.example.org:80, ::1", "*"]) == ("gpu.example.org", "::1", "*")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"host": ""}, "host is empty, perhaps by a shell variable that is not set"),
        ({"host": " \t"}, "host is empty"),
        ({"api_key": ""}, "api_key has an empty key"),
        ({"api_key": "s3cret,,b"}, "api_key has an empty key"),
        ({"api_key": "s3cret s3cret"}, "not printable"),
        ({"api_key": "s3cret\u20ac"}, "not printable"),
        (
            {"allowed_hosts": ("http://a.example",)},
            "allowed_hosts has 'http://a.example': give names of hosts",
        ),
        ({"allowed_hosts": ("*.example",)}, "allowed_hosts has"),
        ({"allowed_hosts": ("",)}, "allowed_hosts has ''"),
        ({"max_requests_per_client": 0}, "at least 1"),
        ({"log_level": "loud"}, "debug, info, warning or error"),
    ],
)
def test_wrong_options_are_refused_without_showing_a_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("*", r"\*")) as error:
        ServerOptions(**options)
    assert "s3cret" not in str(error.value)


def test_the_key_may_come_from_the_environment() -> None:
    environ = {"FGBENCH_API_KEY": "s3cret,other"}
    assert ServerOptions().with_key_of(environ).keys == ("s3cret", "other")
    assert ServerOptions(api_key="mine").with_key_of(environ).keys == ("mine",)
    assert ServerOptions().with_key_of({}).keys == ()
    assert "s3cret" not in repr(ServerOptions().with_key_of(environ))
    with pytest.raises(ValueError, match=r"^\$FGBENCH_API_KEY has an empty key"):
        ServerOptions().with_key_of({"FGBENCH_API_KEY": ""})


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.168.1.20", "2001:db8::1"])
def test_a_server_that_others_reach_without_a_key_warns(address: str) -> None:
    warning = exposure(address, has_key=False)
    assert warning is not None
    assert "without a key" in warning
    assert "FGBENCH_API_KEY" in warning
    assert exposure(address, has_key=True) is None


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.3.2.1", "::ffff:127.0.0.1"])
def test_a_server_on_loopback_does_not_warn(address: str) -> None:
    assert exposure(address, has_key=False) is None


async def test_every_route_but_health_wants_the_key(served_with: Any) -> None:
    async with served_with(ServerOptions(api_key="k1,k2")) as served:
        for path in (
            "/stats",
            "/version",
            "/server_info",
            "/v1/models",
            "/v1/models/fake",
            "/metrics",
            "/",
            "/x",
        ):
            status, answer = await served.get(path)
            assert status == 401, path
        for path in ("/v1/completions", "/v1/chat/completions", "/generate"):
            async with served.session.post(served.url + path, json=BODY) as response:
                answer = await response.json()
                assert (response.status, response.headers["WWW-Authenticate"]) == (401, "Bearer")
                assert answer["error"]["code"] == "invalid_api_key"
                assert answer["error"]["type"] == "invalid_request_error"
                assert "Authorization: Bearer" in answer["error"]["message"]
        for path in HEALTH:
            assert (await served.get(path))[0] == 200
        assert served.engine.users == []
        assert served.service.counters.requests_refused == 3
        for key in ("k1", "k2"):
            headers = {"Authorization": f"Bearer {key}"}
            async with served.session.post(
                served.url + "/v1/completions", json=BODY, headers=headers
            ) as response:
                assert response.status == 200
            async with served.session.get(served.url + "/stats", headers=headers) as response:
                assert response.status == 200
                assert "k1" not in await response.text()


async def _raw(served: Any, text: str) -> str:
    """Send bytes as they are; return the whole answer."""
    host, port = served.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(text.encode("latin-1"))
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    return answer.decode("latin-1")


JSON_BODY = '{"prompt": "abc", "max_tokens": 2}'


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ("Host: localhost\r\nOrigin: http://evil.example\r\nContent-Type: text/plain\r\n", 403),
        ("Host: localhost\r\nOrigin: http://evil.example\r\nContent-Type: application/json\r\n", 403),
        ("Host: localhost\r\nOrigin: null\r\nContent-Type: application/json\r\n", 403),
        ("Host: localhost\r\nOrigin: http://evil.example\r\n", 403),  # a Blob without a type
        ("Host: localhost\r\nSec-Fetch-Site: cross-site\r\nContent-Type: application/json\r\n", 403),
        ("Host: localhost\r\nContent-Type: text/plain\r\n", 415),
        ("Host: attacker.example:10000\r\nContent-Type: application/json\r\n", 403),  # DNS rebinding
        (
            "Host: attacker.example\r\nOrigin: http://attacker.example\r\nContent-Type: application/json\r\n",
            403,
        ),
        ("Host: localhost\r\nContent-Type: application/json\r\n", 200),
        ("Host: localhost\r\n", 200),
        ("Host: 192.168.1.20\r\nOrigin: http://192.168.1.20\r\n", 200),
    ],
)
async def test_a_web_page_cannot_spend_the_machine(served: Any, headers: str, status: int) -> None:
    answer = await _raw(
        served,
        f"POST /v1/completions HTTP/1.1\r\n{headers}Connection: close\r\n"
        f"Content-Length: {len(JSON_BODY)}\r\n\r\n{JSON_BODY}",
    )
    head, _, body = answer.partition("\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} "), answer
    assert "access-control" not in head.lower()  # a page could not read the answer either
    assert len(served.engine.users) == (status == 200)
    assert status == 200 or '"error"' in body


async def test_a_page_of_a_rebound_name_reads_nothing_but_health(served: Any) -> None:
    for path in ("/stats", "/v1/models", "/server_info", "/nothing"):
        answer = await _raw(
            served, f"GET {path} HTTP/1.1\r\nHost: attacker.example\r\nConnection: close\r\n\r\n"
        )
        assert answer.startswith("HTTP/1.1 403 "), answer
        assert "--allowed-hosts" in answer
    answer = await _raw(served, "GET /health HTTP/1.1\r\nHost: balancer.example\r\nConnection: close\r\n\r\n")
    assert answer.startswith("HTTP/1.1 200 ")


async def test_a_preflight_of_another_origin_is_refused(served: Any) -> None:
    answer = await _raw(
        served,
        "OPTIONS /v1/completions HTTP/1.1\r\nHost: localhost\r\nOrigin: http://evil.example\r\n"
        "Access-Control-Request-Method: POST\r\nConnection: close\r\n\r\n",
    )
    assert answer.startswith("HTTP/1.1 403 ")
    assert "access-control" not in answer.lower()


async def test_a_remembered_name_does_not_let_others_in(served: Any) -> None:
    for name, status in (("attacker.example", 403), ("localhost", 200), ("attacker.example", 403)):
        answer = await _raw(served, f"GET /version HTTP/1.0\r\nHost: {name}\r\n\r\n")
        assert f" {status} " in answer.partition("\r\n")[0]


async def test_a_client_has_at_most_so_many_open_requests(served_with: Any, fake: Any) -> None:
    async with served_with(ServerOptions(max_requests_per_client=2)) as served:
        waits = {"prompt": [97, fake.WAIT], "max_tokens": 10}
        open_ones = [asyncio.create_task(served.post("/v1/completions", waits)) for _ in range(2)]
        await served.until(lambda: len(served.engine.requests) == 2)
        async with served.session.post(served.url + "/v1/completions", json=BODY) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "1")
            error = (await response.json())["error"]
        assert (error["type"], error["code"]) == ("rate_limit_error", "client_limit")
        assert "2 open requests" in error["message"]
        assert (await served.get("/stats"))[0] == 200
        assert served.service.counters.requests_rejected == 1
        open_ones[0].cancel()
        await served.until(lambda: len(served.engine.requests) == 1)
        assert (await served.post("/v1/completions", BODY))[0] == 200
        assert (await served.post("/v1/completions", {}))[0] == 400  # a refused one is not open any more
        assert (await served.post("/v1/completions", BODY))[0] == 200
        open_ones[1].cancel()
        await asyncio.gather(*open_ones, return_exceptions=True)


async def test_with_several_keys_each_is_a_client(served_with: Any, fake: Any) -> None:
    async with served_with(ServerOptions(api_key="a,b", max_requests_per_client=1)) as served:

        async def status(key: str, body: Any) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            async with served.session.post(
                served.url + "/v1/completions", json=body, headers=headers
            ) as response:
                await response.read()
                return int(response.status)

        first = asyncio.create_task(status("a", {"prompt": [97, fake.WAIT], "max_tokens": 10}))
        await served.until(lambda: served.engine.has_work)
        assert await status("a", BODY) == 429
        assert await status("b", BODY) == 200
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
