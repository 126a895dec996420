import threading
import time
import urllib.request

import pytest

from fgbench.backends import probe
from fgbench.backends.attached import Attached
from fgbench.backends.backend import BackendError
from fgbench.backends.fastgen import FastGen
from fgbench.backends.probe import ask_served, base_url, wait_until_ready
from fgbench.backends.started import free_port
from fgbench.spec.backend import policy_of
from fgengine.config import EngineConfig


@pytest.mark.parametrize(
    "given", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "h:1", "h:1/v1"]
)
def test_urls_are_normalized(given):
    assert base_url(given) == "http://h:1"


def test_a_path_before_v1_remains():
    assert base_url("https://host/api/v1") == "https://host/api"


@pytest.mark.parametrize("given", ["", "ftp://h", "http://", "http://h:x", "http://h?q=1", "http://u:p@h"])
def test_a_malformed_url_is_an_error(given):
    with pytest.raises(ValueError, match="is not a URL of a server"):
        base_url(given)


def test_attached_waits_and_reports_what_the_server_does(fake_server, tmp_path):
    fake_server.loading = 2
    reported = []
    served = Attached(fake_server.url + "/v1").start(tmp_path / "log", reported.append)
    assert reported == [f"connecting to {fake_server.url}", "loading the model"]
    assert (served.url, served.model, served.vocab_size) == (fake_server.url, "fake", 512)


def test_many_queries_load_tls_certificates_once(fake_server, monkeypatch):
    made = []
    monkeypatch.setattr(
        urllib.request,
        "build_opener",
        lambda *handlers, make=urllib.request.build_opener: made.append(1) or make(*handlers),
    )
    probe._opener.cache_clear()
    for _ in range(3):
        ask_served(fake_server.url)
    assert len(made) == 1


def test_models_are_chosen_by_name(fake_server):
    fake_server.models = [{"id": "a"}, {"id": "b", "vocab_size": 9}]
    assert ask_served(fake_server.url).model == "a"
    assert ask_served(fake_server.url, "b").vocab_size == 9
    with pytest.raises(BackendError, match="serves a, b, not c"):
        ask_served(fake_server.url, "c")
    fake_server.models = []
    assert ask_served(fake_server.url).model == ""


def test_a_server_that_never_becomes_ready(fake_server):
    fake_server.loading = 10**9
    with pytest.raises(BackendError, match="answers 503: loading the model"):
        wait_until_ready(fake_server.url, timeout=0.3, report=lambda line: None)


@pytest.mark.slow
def test_no_server_and_a_server_that_ends_early():
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(BackendError, match="does not answer"):
        wait_until_ready(url, timeout=0.2, report=lambda line: None)
    dead = threading.Event()
    threading.Timer(0.2, dead.set).start()
    begun = time.monotonic()
    with pytest.raises(BackendError, match="ended before it was ready"):
        wait_until_ready(url, timeout=60, report=lambda line: None, alive=lambda: not dead.is_set())
    assert time.monotonic() - begun < 10


def test_names_and_policies():
    assert FastGen(EngineConfig()).name == "fastgen"
    assert FastGen(EngineConfig(policy="fcfs")).name == "fastgen-fcfs"
    assert policy_of("fastgen") is None
    assert policy_of("fastgen-sj-mlfq") == "sj-mlfq"
    assert policy_of("fastgen-pkg.mod:Class") == "pkg.mod:Class"
    for bad in ("fastgen-", "vllm", "fastgenfcfs"):
        with pytest.raises(ValueError, match="there is no backend"):
            policy_of(bad)
    with pytest.raises(ValueError, match="max_batch_size"):
        FastGen(EngineConfig(max_batch_size=0))
    with pytest.raises(ValueError, match="no policy 'lifo'; there are static, fcfs"):
        FastGen(EngineConfig(policy="lifo"))
    assert (
        FastGen(EngineConfig(policy="fgengine.scheduling.srpt:SRPT")).policy
        == "fgengine.scheduling.srpt:SRPT"
    )


def test_settings_include_all_options(tmp_path):
    settings = FastGen(EngineConfig(max_batch_size=8)).settings
    assert (settings["max_batch_size"], settings["policy"]) == (8, "sj-mlfq")


def test_a_port_in_use_is_an_error(fake_server, tmp_path):
    port = int(fake_server.url.rpartition(":")[2])
    with pytest.raises(BackendError, match=f"port {port} is in use"):
        FastGen(EngineConfig(), port=port).start(tmp_path / "log", lambda line: None)


@pytest.mark.slow
def test_a_server_that_cannot_start_shows_its_log(tmp_path):
    backend = FastGen(
        EngineConfig(tokenizer=str(tmp_path / "no-such-model"), use_dummy_weights=True, policy="fcfs")
    )
    with pytest.raises(BackendError, match="no-such-model"):
        backend.start(tmp_path / "log", lambda line: None)
    assert not backend.alive()
