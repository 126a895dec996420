"""Tests of the command line of started servers: names, commands, cores, and the list of backends."""

import json
import os
import shlex
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgbench.backends.named import backend_of
from fgbench.cli.backend_option import backend_specs, parse_backend
from fgbench.cli.main import app
from fgbench.cli.reproduce import settings_of
from fgbench.reproduction.figures import FIGURES, experiment_file, experiments_of
from fgbench.results.run import find_runs, read_run
from fgbench.spec.backend import BackendSpec, name_and_command
from fgbench.spec.client import ClientSpec
from fgbench.spec.load import LoadSpec
from fgbench.spec.start import StartSpec
from fgbench.spec.sweep import Settings, SweepSpec
from fgbench.sweeping.prepared import prepare
from fgengine.config import EngineConfig

SYNTHETIC = [
    "--dataset",
    "synthetic",
    "--input-len",
    "4",
    "--output-len",
    "3",
    "--num-prompts",
    "2",
    "--warmup",
    "0",
]


def fgbench(*argv):
    return CliRunner().invoke(app, [*map(str, argv)])


def refusal(*argv):
    """Return the exit code and the message of a wrong command line."""
    done = fgbench(*argv)
    return done.exit_code, done.output + str(done.stderr)


def test_vllm_takes_our_options_and_its_own():
    server = EngineConfig(max_batch_size=8)
    text = "vllm --max-num-seqs 256 --dtype float32 --json-x '{\"a\": 1}'"
    spec = parse_backend(text, server, given=["block_size"])
    assert (spec.kind, spec.name) == ("vllm", "vllm")
    assert spec.arguments == ("--max-num-seqs", "256", "--json-x", '{"a": 1}')
    assert spec.server == EngineConfig(max_batch_size=8, dtype="float32")
    assert spec.given == {"block_size", "max_batch_size", "dtype"}
    assert spec.own == {"dtype"}
    assert spec.label == text
    chunked = parse_backend("vllm-chunked --vllm-preset artifact --cores 0", server, StartSpec(cores="1"))
    assert chunked.start == StartSpec(vllm_preset="artifact", cores="0")


def test_only_vllm_takes_unknown_options():
    with pytest.raises(ValueError, match="No such option"):
        parse_backend("fastgen --max-num-seqs 256", EngineConfig())
    with pytest.raises(ValueError, match="--vllm-preset is for vLLM, not for --backend"):
        parse_backend("fastgen --vllm-preset artifact", EngineConfig())


def test_a_command_is_told_from_a_url():
    assert name_and_command("llama=command: run -m {model} 'a b' --port {port}") == (
        "llama",
        ("run", "-m", "{model}", "a b", "--port", "{port}"),
    )
    assert name_and_command("x=command:/bin/run {port}") == ("x", ("/bin/run", "{port}"))
    assert name_and_command("x=command: 8000") == ("x", ("8000",))
    for other in ("vllm=http://h:1", "x=command:8000", "x=command:8000/v1", "vllm", "x=commands: a"):
        assert name_and_command(other) is None
    for wrong in ("=command: a", "x=command:", "x=command:  "):
        with pytest.raises(ValueError, match="lacks a name or a command: write it like 'llama=command:"):
            name_and_command(wrong)
    with pytest.raises(ValueError, match="cannot be read: No closing quotation"):
        name_and_command("x=command: 'a")


def test_the_start_of_all_backends_applies_where_it_can():
    start = StartSpec(cores="0", vllm_preset="artifact")
    server = EngineConfig()
    assert parse_backend("fastgen", server, start).start == StartSpec(cores="0")
    assert parse_backend("vllm", server, start).start == start
    assert parse_backend("x=command: run {port}", server, start).start == StartSpec(cores="0")
    assert parse_backend("x=http://h:1", server, start).start == StartSpec()
    assert parse_backend("simulated", server, start).start == StartSpec()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--backend", "vllm", "--offloading", "auto"], "--offloading means nothing for --backend vllm"),
        (["--backend", "vllm", "--policy", "sj-mlfq"], "--policy means nothing for --backend vllm"),
        (["--backend", "vllm --policy fcfs"], "--policy means nothing for --backend vllm"),
        (["--backend", "vllm --port 80"], "--port cannot be passed to vLLM"),
        (["--backend", "simulated", "--cores", "0"], "--cores is for a server that is started"),
        (["--url", "http://h:1", "--cores", "0"], "--cores is for a server that is started"),
        (["--backend", "fastgen", "--vllm-preset", "default"], "--vllm-preset is for vLLM"),
        (["--cores", "x"], "--cores 'x' is not a list of cores"),
        (["--cores", "4000", "--use-dummy-weights"], "a process cannot use core 4000 here"),
        (["--backend", "x=command: no-such-program {port}"], "there is no program 'no-such-program'"),
        (["--backend", "x=command: true {port}", "--max-batch-size", "4"], "--max-batch-size means nothing"),
        (["--backend", "vllm2"], "there is no backend 'vllm2': use fastgen, fastgen-POLICY"),
    ],
)
def test_wrong_options_are_refused_before_anything_starts(fake_vllm, tmp_path, argv, message):
    python = ["--vllm-python", fake_vllm()] if any("vllm" in word for word in argv[:2]) else []
    code, text = refusal("run", *argv, *(python if "vllm2" not in argv else []), "--results", tmp_path / "r")
    assert code == 2
    assert message in text


def test_a_missing_vllm_is_explained(monkeypatch, tmp_path):
    monkeypatch.delenv("FGBENCH_VLLM_PYTHON", raising=False)
    monkeypatch.setattr("fgbench.backends.vllm_install.importlib.util.find_spec", lambda name: None)
    code, text = refusal("run", "--backend", "vllm", "--results", tmp_path)
    assert code == 2
    assert "vLLM is not installed in the environment of fgbench: install vLLM into" in text


@pytest.mark.slow
def test_a_run_of_vllm_can_be_repeated_from_its_spec(fake_vllm, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("fgbench.exit_status.LAG_SECONDS", 60.0)
    core = min(os.sched_getaffinity(0))
    argv = ["--backend", "vllm --max-num-seqs 256", "--vllm-python", fake_vllm(), "--model", tiny_model]
    options = ["--max-model-len", 512, "--cores", core, "--rate", "inf", "--results", tmp_path / "r"]
    done = fgbench("run", *argv, *options, *SYNTHETIC)
    assert done.exit_code == 0, done.output
    assert "preset tuned" in done.output
    (path,) = find_runs(tmp_path / "r")
    again = fgbench("run", "--config", path / "spec.toml", "--results", tmp_path / "again")
    assert again.exit_code == 0, again.output
    (path_again,) = find_runs(tmp_path / "again")
    first, second = read_run(path).info, read_run(path_again).info
    assert first["fingerprint"] == second["fingerprint"]
    assert second["backend"]["settings"]["max_num_seqs"] == 256
    assert second["backend"]["settings"]["max_model_len"] == 512
    assert second["backend"]["settings"]["cores"] == str(core)


@pytest.mark.slow
def test_a_sweep_compares_vllm_with_a_command_and_can_be_resumed(
    fake_vllm, tiny_model, tmp_path, monkeypatch
):
    monkeypatch.setattr("fgbench.exit_status.LAG_SECONDS", 60.0)
    python = fake_vllm()
    server = f"{python} -m vllm.entrypoints.openai.api_server --host 127.0.0.1"
    command = f"other=command: {server} --port {{port}} --model {{model}}"
    backends = ["--backend", "vllm --max-num-seqs 256", "--backend", "vllm-chunked", "--backend", command]
    argv = ["sweep", *backends, "--vllm-python", python, "--model", tiny_model, "--rates", "inf"]
    done = fgbench(*argv, *SYNTHETIC, "--max-batch-size", 16, "--results", tmp_path / "r")
    assert done.exit_code == 0, done.output
    (sweep,) = (tmp_path / "r").iterdir()
    settings = {
        read_run(path).info["backend"]["name"]: read_run(path).info["backend"]["settings"]
        for path in find_runs(sweep)
    }
    assert settings["vllm"]["max_num_seqs"] == 256  # its own option
    assert settings["vllm-chunked"]["max_num_seqs"] == 16  # given for all, with its default value
    assert settings["vllm-chunked"]["enable_chunked_prefill"] is True
    assert settings["other"]["command"].startswith(python)
    assert {path.name for path in sweep.glob("server_*.log")} == {
        "server_vllm-max-num-seqs-256.log",
        "server_vllm-chunked.log",
        "server_other.log",
    }
    resumed = fgbench("sweep", "--resume", sweep)
    assert resumed.exit_code == 0, resumed.output
    assert len(find_runs(sweep)) == 3


def prepared(*backends, given=(), server=None, start=None):
    settings = Settings(
        sweep=SweepSpec(backend=backends, rates=(1.0,)),
        load=LoadSpec(dataset="synthetic", input_len="4", output_len="3", num_prompts=2),
        client=ClientSpec(),
        server=server or EngineConfig(),
        start=start or StartSpec(),
        given=given,
    )
    assert Settings.from_json(json.loads(json.dumps(settings.to_json()))) == settings
    return prepare(settings, backend_specs(settings), lambda line: None)


def test_reproduce_leaves_out_a_missing_vllm_and_measures_it_once_it_is_there(
    fake_vllm, tmp_path, monkeypatch
):
    profile = Path(__file__).parents[2] / "data" / "profile.json"
    experiment = tmp_path / "experiment.toml"
    experiment.write_text(
        f'model = "smollm2-135m"\nprofile = "{profile}"\ndataset = "synthetic"\ninput-len = "4"\n'
        'output-len = "3"\nnum-prompts = 2\nwarmup = 0\nrates = [50]\nvllm-preset = "artifact"\n'
        'backend = ["fastgen=simulated", "vllm", "vllm-chunked"]\n'
    )
    monkeypatch.setattr("fgbench.cli.reproduce.experiment_file", lambda name, on: experiment)
    argv = ["reproduce", "fig17", "--on", "laptop", "--results", tmp_path / "results"]

    folder = tmp_path / "results" / "reproduction" / "laptop"

    def measured():
        return sorted(read_run(path).info["backend"]["name"] for path in find_runs(folder))

    monkeypatch.setattr("fgbench.backends.vllm_install.importlib.util.find_spec", lambda name: None)
    planned = fgbench(*argv, "--dry-run")
    assert "offloading: 1 points of 2 requests" in " ".join(planned.output.split())
    without = fgbench(*argv)
    assert without.exit_code == 0, without.output
    assert "Left out: vllm, vllm-chunked in offloading: vLLM is not installed" in " ".join(
        without.output.split()
    )
    assert measured() == ["fastgen"]

    monkeypatch.setenv("FGBENCH_VLLM_PYTHON", fake_vllm())
    done = fgbench(*argv)
    assert done.exit_code == 0, done.output
    assert "Left out" not in done.output
    assert measured() == ["fastgen", "vllm", "vllm-chunked"], "what was measured is not measured again"
    (sweep,) = folder.glob("*_sweep/sweep.json")
    assert set(json.loads(sweep.read_text())["systems"]) == {"fastgen", "vllm", "vllm-chunked"}


@pytest.mark.parametrize("generation", ["0.5", "0.8", "0.32"])
def test_each_experiment_on_a_laptop_can_start_every_vllm(fake_vllm, tmp_path, monkeypatch, generation):
    monkeypatch.setenv("FGBENCH_VLLM_PYTHON", fake_vllm(generation))
    monkeypatch.setenv("FGBENCH_CACHE", str(tmp_path / "cache"))
    experiments = experiments_of(list(FIGURES))
    files = [path for name in experiments if (path := experiment_file(name, "laptop"))]
    assert len(files) > 5
    for path in files:
        specs = backend_specs(settings_of(path))
        for spec in specs.values():
            if spec.kind == "vllm":
                backend_of(spec).prepare(lambda line: None)


def test_a_sweep_refuses_options_that_mean_nothing_for_all_of_its_backends(fake_vllm):
    start = StartSpec(vllm_python=fake_vllm())
    server = EngineConfig(offloading="auto")
    with pytest.raises(ValueError, match="--offloading means nothing for any of the backends"):
        prepared("vllm", given=("offloading",), server=server, start=start)
    prepared("vllm", "fastgen", given=("offloading",), server=server, start=start)
    with pytest.raises(ValueError, match="--vllm-preset means nothing for any of the backends"):
        prepared("fastgen", start=StartSpec(vllm_preset="default"))
    with pytest.raises(ValueError, match="--max-batch-size means nothing for any of the backends"):
        prepared("x=command: true {port}", given=("max_batch_size",))


def test_equal_backends_are_found(fake_vllm):
    start = StartSpec(vllm_python=fake_vllm())
    with pytest.raises(ValueError, match=r"is the same as --backend"):
        prepared("vllm --max-num-seqs 8", "vllm --max-num-seqs=8", start=start)


def test_spec_toml_has_the_text_of_a_command():
    spec = parse_backend("x=command: run 'a b' {port}", EngineConfig())
    assert spec.repeating_options(LoadSpec(), ClientSpec())["backend"] == "x=command: run 'a b' '{port}'"
    assert name_and_command(spec.repeating_options(LoadSpec(), ClientSpec())["backend"]) == (
        "x",
        spec.command,
    )
    assert BackendSpec(name="fastgen").repeating_options(LoadSpec(), ClientSpec())["backend"] == "fastgen"


def test_the_list_of_backends(fake_vllm, monkeypatch):
    python = fake_vllm(version="0.9.1", cuda="12.4")
    found = json.loads(fgbench("backends", "--json", "--vllm-python", python).stdout)
    by_name = {one["name"]: one for one in found}
    assert list(by_name) == ["fastgen", "simulated", "vllm", "vllm-chunked"]
    assert by_name["vllm-chunked"]["version"] == "0.9.1 (CUDA)"
    assert by_name["vllm"]["where"] == python
    assert by_name["fastgen"]["available"]


def test_the_list_says_how_to_get_what_is_missing_in_80_columns(monkeypatch):
    monkeypatch.delenv("FGBENCH_VLLM_PYTHON", raising=False)
    monkeypatch.setattr("fgbench.backends.vllm_install.importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("COLUMNS", "80")
    done = fgbench("backends")
    assert done.exit_code == 0
    assert max(map(len, done.output.splitlines())) <= 80
    text = " ".join(done.output.split())
    assert "vllm missing vLLM without chunked prefill" in text
    assert "vllm-env/bin/pip install vllm" in text
    assert shlex.quote(sys.executable) not in text
