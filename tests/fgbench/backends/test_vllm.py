"""Tests of the backends ``vllm`` and ``vllm-chunked`` against a fake vLLM, and one against the real one."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import replace

import psutil
import pytest

from fgbench.backends import process as process_module
from fgbench.backends import vllm_install
from fgbench.backends.backend import BackendError, Passing
from fgbench.backends.started import first_error, free_port, message_of
from fgbench.backends.vllm import Vllm
from fgbench.benchmark import execute_run
from fgbench.spec.cores import cores_text
from fgbench.spec.load import Load
from fgbench.spec.start import StartSpec
from fgbench.workload.datasets import Synthetic
from fgbench.workload.lengths import Between
from fgengine.config import EngineConfig

DATASET = Synthetic(Between(4, 4), Between(3, 3))


@pytest.fixture
def model(tiny_model):
    return EngineConfig(model=str(tiny_model))


def backend(python, server, *, preset="tuned", cores=None, **more):
    return Vllm(server, start=StartSpec(vllm_python=python, vllm_preset=preset, cores=cores), **more)


def test_a_run_records_command_version_environment_and_cores(fake_vllm, model, tmp_path):
    core = str(min(os.sched_getaffinity(0)))
    vllm = backend(fake_vllm(), model, cores=core, passed=["--max-num-seqs", "256"])
    reported = []

    class Display:
        report = staticmethod(reported.append)

    vllm.prepare(reported.append)
    run = execute_run(vllm, DATASET, Load(rate=math.inf, num_prompts=3, num_warmup=0), results=tmp_path / "r")
    assert run.complete
    assert run.info["summary"]["ok"] == 3
    assert run.info["model"] == model.model
    settings, server = run.info["backend"]["settings"], run.info["server"]
    assert settings["version"] == "0.32.0"
    assert settings["preset"] == "tuned"
    assert settings["max_num_seqs"] == 256
    assert settings["enable_prefix_caching"] is False
    assert settings["VLLM_CPU_OMP_THREADS_BIND"] == settings["cores"] == server["cores"] == core
    assert server["command"][:3] == [vllm.installed.python, "-m", "vllm.entrypoints.openai.api_server"]
    assert "--no-enable-chunked-prefill" in server["command"]
    assert server["environment"]["HF_HUB_OFFLINE"] == "1"
    assert server["in_effect"] == {"chunked_prefill": False, "prefix_caching": False}
    assert server["notes"] == []
    log = (run.path / "server.log").read_text()
    assert f"os.environ.get('VLLM_CPU_OMP_THREADS_BIND')='{core}'" in log
    assert f"os.sched_getaffinity(0)={{{core}}}" in log
    assert not vllm.alive()


@pytest.mark.slow
def test_equal_settings_have_equal_fingerprints_whatever_the_port(fake_vllm, model, tmp_path):
    python = fake_vllm()
    load = Load(rate=math.inf, num_prompts=1, num_warmup=0)
    prints = [
        execute_run(backend(python, model, passed=passed), DATASET, load, results=tmp_path / "r").info[
            "fingerprint"
        ]
        for passed in ((), (), ("--max-num-seqs", "4"))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_the_start_is_reported_with_threads_and_command(fake_vllm, model, tmp_path):
    reported = []
    vllm = backend(fake_vllm(), model)
    try:
        vllm.start(tmp_path / "log", reported.append)
    finally:
        vllm.stop()
    text = "\n".join(line for line in reported if not isinstance(line, Passing))
    assert f"vLLM 0.32.0 (CPU build) in {vllm.installed.python}, preset tuned" in text
    cores = cores_text(os.sched_getaffinity(0))
    assert f"its threads: cores {cores}" in text
    assert f"VLLM_CPU_OMP_THREADS_BIND={cores} " in text
    assert "-m vllm.entrypoints.openai.api_server --host 127.0.0.1 --port" in text


def test_threads_that_leave_a_core_unused_are_reported(fake_vllm, model, tmp_path):
    lines = ["OpenMP thread binding info:", "\tlocal_rank=0, core ids=[0]"]
    reported = []
    vllm = backend(fake_vllm(prints=lines), model, preset="default")
    try:
        ready = vllm.start(tmp_path / "log", reported.append)
    finally:
        vllm.stop()
    cores = cores_text(os.sched_getaffinity(0))
    note = f"vLLM 0.32.0 computes on core 0 only, although it may use cores {cores}"
    assert ready.started["in_effect"]["compute_cores"] == "0"
    assert (note in reported) is (note in ready.started["notes"]) is (cores != "0")


@pytest.mark.parametrize("generation", ["0.5", "0.8"])
def test_old_versions_get_their_own_options(fake_vllm, model, tmp_path, generation):
    vllm = backend(fake_vllm(generation), model, preset="artifact")
    reported = []
    try:
        ready = vllm.start(tmp_path / "log", reported.append)
    finally:
        vllm.stop()
    command = ready.started["command"]
    assert {"--disable-log-requests", "--swap-space", "--num-scheduler-steps", "--device"} <= set(command)
    assert "--enable-chunked-prefill=False" in command
    assert ("--no-enable-prefix-caching" in command) is (generation == "0.8")
    forced = "vLLM 0.8.0 has chunked prefill on, although chunked prefill off was asked for"
    blocks = "vLLM's CPU build has KV blocks of 32 tokens instead of 16"
    assert ready.started["notes"] == ([blocks, forced] if generation == "0.8" else [blocks])
    assert (forced in reported) is (generation == "0.8")


def test_the_help_is_asked_once_for_each_version(fake_vllm, model, monkeypatch):
    python = fake_vllm()
    calls = []
    run = vllm_install.subprocess.run
    monkeypatch.setattr(
        vllm_install.subprocess, "run", lambda command, **more: calls.append(command) or run(command, **more)
    )
    reported = []
    for chunked in (False, True):
        backend(python, model, chunked=chunked).prepare(reported.append)
    assert reported == ["asking vLLM 0.32.0 (CPU build) for its options"]
    assert [command[-1] for command in calls if "-m" in command] == ["--help=all"]


def test_an_unknown_option_ends_the_preparation(fake_vllm, model):
    vllm = backend(fake_vllm(), model, passed=["--max-seqs", "4"])
    with pytest.raises(BackendError, match=r"vLLM 0.32.0 has no option --max-seqs"):
        vllm.prepare(lambda line: None)


def test_a_death_at_start_ends_the_wait_and_shows_the_log(fake_vllm, model, tmp_path):
    vllm = backend(fake_vllm(dies_at_start=True), model)
    begun = time.monotonic()
    with pytest.raises(BackendError) as error:
        vllm.start(tmp_path / "log", lambda line: None)
    assert time.monotonic() - begun < 20
    text = str(error.value)
    assert text.startswith("the server ended before it was ready (exit code 1); its log, ")
    assert str(tmp_path / "log") in text
    assert "RuntimeError: Engine core initialization failed" in text
    assert not vllm.alive()


def test_the_cause_of_a_death_at_start_is_shown_if_it_is_far_above_the_end(fake_vllm, model, tmp_path):
    cause = "ValueError: Available memory on node 0 is less than desired"
    lines = [f"(VllmWorker-0 pid=3) ERROR 11-26 07:08:09 [multi.py:9] {cause}", *["at a line"] * 40]
    (tmp_path / "log").write_text("KeyError: of an earlier server\n")
    vllm = backend(fake_vllm(dies_at_start=True, prints=lines), model)
    with pytest.raises(BackendError) as error:
        vllm.start(tmp_path / "log", lambda line: None)
    text = str(error.value)
    assert text.startswith(f"the server ended before it was ready (exit code 1): {cause}; its log, ")
    assert text.count("RuntimeError: Engine core initialization failed") == 1


def test_the_first_exception_of_a_log_is_its_cause():
    assert first_error("INFO x\na.b.OutOfMemoryError: 3 GiB\nRuntimeError: see above") == (
        "a.b.OutOfMemoryError: 3 GiB"
    )
    assert first_error("No Error: here\nall is well") == ""


@pytest.mark.slow
def test_a_death_midway_fails_the_run_with_the_log(fake_vllm, model, tmp_path):
    vllm = backend(fake_vllm(dies_at_request=3), model)
    load = Load(rate=20.0, num_prompts=30, num_warmup=0)
    run = execute_run(vllm, DATASET, load, results=tmp_path / "r")
    assert run.status == "failed"
    assert "RuntimeError: the engine broke" in run.info["error"]


@pytest.mark.slow
def test_a_slow_start_shows_what_the_server_does(fake_vllm, model, tmp_path, monkeypatch):
    monkeypatch.setattr("fgbench.backends.started.FOLLOW_SECONDS", 0.05)
    reported = []
    vllm = backend(fake_vllm(start_seconds=1.0), model)
    try:
        vllm.start(tmp_path / "log", reported.append)
    finally:
        vllm.stop()
    passing = [line for line in reported if isinstance(line, Passing)]
    assert any(line.startswith("Initializing a V1 LLM engine") for line in passing)
    assert passing[-1] == ""


@pytest.mark.parametrize("dies", [False, True])
def test_an_orphaned_child_that_ignores_sigterm_ends_too(fake_vllm, model, tmp_path, monkeypatch, dies):
    monkeypatch.setattr(process_module, "GROUP_SECONDS", 0.3)
    vllm = backend(fake_vllm(child=True, dies_at_start=dies), model)
    if dies:
        with pytest.raises(BackendError, match="ended before it was ready"):
            vllm.start(tmp_path / "log", lambda line: None)
    else:
        vllm.start(tmp_path / "log", lambda line: None)
        vllm.stop()
    child = int((tmp_path / "log").read_text().split("child ")[1].split()[0])
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


def test_a_port_in_use_is_an_error(fake_vllm, model, tmp_path, fake_server):
    port = int(fake_server.url.rpartition(":")[2])
    with pytest.raises(BackendError, match=f"port {port} is in use"):
        backend(fake_vllm(), model, port=port).start(tmp_path / "log", lambda line: None)
    assert free_port() != port


def test_builds_and_missing_installations(fake_vllm, model, tmp_path):
    cuda = backend(fake_vllm(version="0.6.3", cuda="12.4"), model, preset="artifact")
    assert cuda.installed.build == "CUDA"
    assert cuda.settings["dtype"] == "float16"
    assert "VLLM_CPU_OMP_THREADS_BIND" not in cuda.settings
    assert backend(fake_vllm(version="0.9.0+cpu", cuda="12.4"), model).installed.build == "CPU"
    empty = tmp_path / "python"
    empty.write_text("#!/bin/sh\necho no\n")
    empty.chmod(0o755)
    with pytest.raises(ValueError, match="does not work as a Python"):
        backend(str(empty), model)


def test_messages_of_a_log_are_shown_without_time_and_place():
    assert message_of("(EngineCore pid=12) INFO 11-26 06:15:56 [core.py:1] Loading") == "Loading"
    assert message_of("WARNING 06-01 10:00:00 config.py:99] Old") == "config.py:99] Old"
    assert message_of("Loading shards: 0%") == "Loading shards: 0%"


def test_the_presets_compute_on_the_same_cores(fake_vllm, model, tmp_path, monkeypatch):
    python = fake_vllm()
    cores = cores_text(os.sched_getaffinity(0))
    for preset in ("tuned", "default", "artifact"):
        assert backend(python, model, preset=preset).settings["VLLM_CPU_OMP_THREADS_BIND"] == cores
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "auto")
    reported = []
    vllm = backend(python, model, preset="default")
    try:
        vllm.start(tmp_path / "log", reported.append)
    finally:
        vllm.stop()
    assert "its threads: VLLM_CPU_OMP_THREADS_BIND=auto; its KV cache: as vLLM decides" in reported
    assert "os.environ.get('VLLM_CPU_OMP_THREADS_BIND')='auto'" in (tmp_path / "log").read_text()


def test_the_libraries_in_the_environment_of_vllm_are_found(tmp_path):
    names = ("libtcmalloc_minimal.so.4", "libiomp5.so")
    (tmp_path / "lib").mkdir()
    for name in names:
        (tmp_path / "lib" / name).touch()
    code = f"import sys; sys.prefix = {str(tmp_path)!r}\n{vllm_install.ASK_VERSION}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["libraries"] == [str(tmp_path / "lib" / name) for name in names]


def test_a_python_without_vllm_is_told_from_no_python(tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without installed packages
    python.chmod(0o755)
    with pytest.raises(ValueError, match="has no vLLM: install vLLM"):
        vllm_install.find_vllm(str(python))


def test_recommended_libraries_are_preloaded_and_recorded_by_their_names(fake_vllm, model, monkeypatch):
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    found = replace(vllm_install.find_vllm(fake_vllm()), libraries=("/env/lib/libone.so", "libtwo.so"))
    monkeypatch.setattr("fgbench.backends.vllm.find_vllm", lambda python: found)
    vllm = backend(found.python, model)
    assert vllm.settings["preload"] == ["libone.so", "libtwo.so"]
    assert vllm.environment()["LD_PRELOAD"] == "/env/lib/libone.so:libtwo.so"
    default = backend(found.python, model, preset="default")
    assert "preload" not in default.settings
    assert "LD_PRELOAD" not in default.environment()


def test_a_python_that_does_not_know_safe_paths_gets_another_start(fake_vllm, tmp_path, monkeypatch):
    """PYTHONSAFEPATH has no effect in Python 3.10: the working folder would be searched for modules."""
    vllm = replace(vllm_install.find_vllm(fake_vllm()), knows_safe_path=False)
    (tmp_path / "random.py").write_text("raise SystemExit('imported from the working folder')\n")
    monkeypatch.chdir(tmp_path)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONSAFEPATH"}
    done = subprocess.run(
        vllm_install.server_command(vllm, "--help=all"),
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "--max-num-seqs" in done.stdout


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("preset", "chunked"), [("tuned", False), ("default", False), ("artifact", False), ("tuned", True)]
)
def test_the_real_vllm_starts_answers_and_leaves_nothing_behind(tmp_path, monkeypatch, preset, chunked):
    monkeypatch.setenv("FGBENCH_TEST_RUN", str(tmp_path))  # all of its processes inherit this
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")  # by default it takes 92% of the memory
    passed = ["--max-model-len", "512", "--enforce-eager"]  # compiling takes minutes
    try:
        vllm_install.find_vllm()
    except ValueError as error:
        pytest.skip(str(error))
    vllm = Vllm(EngineConfig(), chunked=chunked, start=StartSpec(vllm_preset=preset), passed=passed)
    run = execute_run(vllm, DATASET, Load(rate=math.inf, num_prompts=3, num_warmup=1), results=tmp_path)
    assert run.complete
    assert run.info["summary"]["ok"] == 3
    server, conditions = run.info["server"], run.info["conditions"]
    assert server["version"] == vllm.installed.version
    assert server["in_effect"]["prefix_caching"] is (preset == "default")
    assert server["in_effect"]["chunked_prefill"] is (chunked or preset == "default")
    if vllm.installed.build == "CPU":
        assert server["in_effect"]["compute_cores"] == cores_text(os.sched_getaffinity(0))
    assert conditions["miscounted"] == conditions["without_usage"] == 0
    assert run.info["prefix_cache"]["reset"]
    assert "Application startup complete" in (run.path / "server.log").read_text()
    assert processes_with("FGBENCH_TEST_RUN", str(tmp_path)) == []


def processes_with(variable, value):
    """Return the names of the processes that started with an environment variable."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(variable) == value:
                found.append(process.name())
    return found
