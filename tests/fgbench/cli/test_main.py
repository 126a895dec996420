"""Tests of the program: verbs, help, exit codes, and the options of the server."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from fgbench.cli import main
from fgbench.cli.flags import Command, takes_options
from fgbench.spec.load import LoadSpec
from fgengine.config import EngineConfig
from fgengine.preflight import check_names
from fgengine.settings import as_arguments


def _fgbench(*argv: str, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "fgbench", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _parse(*argv: str) -> EngineConfig:
    received: list[EngineConfig] = []
    app = typer.Typer()

    @app.command(cls=Command)
    @takes_options
    def verb(server: EngineConfig, own: Annotated[int, typer.Option()] = 3) -> None:
        received.append(server)

    result = CliRunner().invoke(app, list(argv))
    assert result.exit_code == 0, result.output
    return received[0]


def test_help_lists_the_verbs() -> None:
    result = _fgbench("--help")
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in main.VERBS)


def test_without_a_verb_the_program_shows_how_to_start() -> None:
    result = _fgbench()
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert len(lines) <= 15
    assert max(map(len, lines)) <= 80
    named = {line.split()[1] for line in lines if line.startswith("  fgbench ")}
    assert {"demo", "run", "simulate", "compare"} <= named <= {*main.VERBS, "--help"}


def test_the_version_is_printed() -> None:
    import fgbench

    assert _fgbench("--version").stdout == f"fgbench {fgbench.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    code = """
import contextlib, sys
sys.argv = ["fgbench", "--help"]
from fgbench.cli.main import app
with contextlib.suppress(SystemExit):
    app()
heavy = "torch transformers pandas matplotlib pyarrow aiohttp tokenizers numpy scipy sortedcontainers".split()
print("imported", [name for name in heavy if name in sys.modules])
"""
    assert "imported []" in _fgbench(code=code).stdout


@pytest.mark.slow
def test_unknown_verb_and_option() -> None:
    assert _fgbench("srve").returncode == 2
    assert _fgbench("serve", "--nonsense").returncode == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max-batch-size", "0"], "--max-batch-size must be at least 1"),
        (["--policy", "fcfs", "--use-skip-join"], "--use-skip-join does not work with --policy fcfs"),
        (["--swap-space", "-1"], "--swap-space must be at least 0, not -1.0 (GiB)"),
        (["--profile", "/no/such/file"], "there is no file"),
        (["--policy", "lifo"], "there is no policy 'lifo'; there are static, fcfs"),
        (["--model", "gpt-9"], 'model "gpt-9" is neither in the catalog'),
        (["--seed", str(2**64)], "--engine-seed must be at most"),
        (["--block-size", "7"], "--block-size must be 8, 16, 32, 64 or 128, not 7"),
        (["--num-device-blocks", str(2**64)], "--num-device-blocks must be at most"),
    ],
)
@pytest.mark.slow
def test_a_mistake_is_reported_in_one_sentence(argv: list[str], message: str) -> None:
    result = _fgbench("serve", *argv)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FGBENCH_DEBUG", "1")
    with pytest.raises(FileNotFoundError) as raised:
        Path("/no/such/file").read_text()
    assert main.print_error(raised.value) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_exits_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "load_verb", interrupted)
    assert CliRunner().invoke(main.app, ["serve"]).exit_code == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
def test_every_verb_ends_on_a_signal_even_if_it_was_ignored(number: signal.Signals) -> None:
    """A job that a script starts in the background ignores SIGINT from its start."""
    verb = "import signal, time; from fgbench.cli import main\n"
    verb += "main.load_verb = lambda name: (print('up', flush=True), time.sleep(60))\nmain.app(['results'])"
    before = signal.signal(number, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, "-c", verb], stdout=subprocess.PIPE, text=True)
    finally:
        signal.signal(number, before)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        try:
            assert process.wait(20) == 130
        finally:
            process.kill()


@pytest.mark.slow
def test_serve_help_has_an_example_and_panels() -> None:
    text = _fgbench("serve", "--help").stdout
    assert all(word in text for word in ("fgbench serve --policy", "Model", "Scheduling", "Queue", "Memory"))


# the server's options


def test_defaults() -> None:
    assert _parse() == EngineConfig()
    assert as_arguments(EngineConfig()) == []


def test_options_of_the_artifact() -> None:
    argv = "--model opt-13b --block-size 16 --gpu-memory-utilization 0.9 --swap-space 32 --sched-policy mlfq"
    argv += " --max-batch-size 16 --max-tokens-per-batch 2048 --use-dummy-weights --proactive-offloading"
    config = _parse(*argv.split(), "--use-skip-join")
    assert (config.model, config.policy, config.use_dummy_weights) == ("opt-13b", "sj-mlfq", True)
    assert (config.swap_space_bytes, config.offloading) == (32 * 2**30, "proactive")


def test_profile_under_both_names(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.touch()
    for name in ("--profile", "--profiling-file"):
        assert _parse(name, str(file)).profile == file


def test_two_options_with_the_same_name_are_an_error_at_import() -> None:
    with pytest.raises(TypeError, match="verb: two options are called model"):

        @takes_options
        def verb(server: EngineConfig, model: Annotated[str, typer.Option()] = "") -> None: ...


def test_a_verb_takes_several_groups_without_the_options_it_leaves_out() -> None:
    received: list[tuple[LoadSpec, EngineConfig, str]] = []
    app = typer.Typer()

    @app.command(cls=Command)
    @takes_options(without={"load": ["rate"]})
    def verb(
        load: LoadSpec, server: EngineConfig, rates: Annotated[str, typer.Option("--rates")] = "1,2"
    ) -> None:
        received.append((load, server, rates))

    argv = [
        "--rates",
        "3,4",
        "--num-prompts",
        "9",
        "--seed",
        "7",
        "--engine-seed",
        "8",
        "--max-batch-size",
        "5",
    ]
    assert CliRunner().invoke(app, argv).exit_code == 0
    assert received == [
        (LoadSpec(num_prompts=9, seed=7), EngineConfig(max_batch_size=5, engine_seed=8), "3,4")
    ]
    assert CliRunner().invoke(app, ["--rate", "3"]).exit_code == 2


def test_the_servers_seed_can_be_set_from_every_verb() -> None:
    assert _parse("--engine-seed", "3").engine_seed == 3
    assert _parse("--seed", "3").engine_seed == 3, "serve has no load, so --seed is the engine's seed"
    for verb in ("run", "sweep", "simulate"):
        names = {parameter.name for parameter in main.load_verb(verb).params}
        assert {"seed", "engine_seed"} <= names, verb


@given(
    st.builds(
        EngineConfig,
        model=st.sampled_from(["opt-13b", "./a folder", "-odd"]),
        tokenizer=st.none() | st.just("other"),
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        use_dummy_weights=st.booleans(),
        max_model_len=st.none() | st.integers(2, 9999),
        policy=st.sampled_from(["fcfs", "mlfq"]),
        offloading=st.sampled_from(["reactive", "proactive"]),
        starvation_limit=st.floats(0.001, 1e9),
        profile=st.none() | st.just(Path("p q.json")),
        num_device_blocks=st.none() | st.integers(1, 9999),
        swap_space=st.none() | st.floats(0, 512),
        max_queue=st.none() | st.integers(0, 9999),
        max_queue_tokens=st.none() | st.integers(0, 9999),
        queue_timeout=st.none() | st.floats(0.001, 1e6),
    )
)
@pytest.mark.slow
def test_settings_survive_conversion_to_arguments(config: EngineConfig) -> None:
    assert _parse(*as_arguments(config)) == config


def test_the_host_pool_is_sized_by_the_engine_unless_it_is_set() -> None:
    assert _parse().swap_space_bytes is None
    assert _parse("--swap-space", "0").swap_space_bytes == 0
    assert _parse("--swap-space", "1.5").swap_space_bytes == 3 * 2**29


@pytest.mark.parametrize("name", ["nonsense", "noisy:x", "noisy:-1", "noisy"])
def test_an_unknown_predictor_is_refused_before_the_model_loads(name: str) -> None:
    with pytest.raises(ValueError, match=r"oracle, noisy:SIGMA|noisy:SIGMA takes"):
        check_names(EngineConfig(policy="sprpt", predictor=name))
