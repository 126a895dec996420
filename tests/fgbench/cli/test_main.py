"""The program: its verbs, its help, its exit codes; the server's options."""

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
from fgbench.cli.load_options import LoadOptions
from fgbench.cli.option_groups import takes_options
from fgbench.cli.options import ServerOptions


def _fgbench(*argv: str, code: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "fgbench", *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _parse(*argv: str) -> ServerOptions:
    got: list[ServerOptions] = []
    app = typer.Typer()

    @app.command()
    @takes_options
    def verb(server: ServerOptions, own: Annotated[int, typer.Option()] = 3) -> None:
        got.append(server)

    result = CliRunner().invoke(app, list(argv))
    assert result.exit_code == 0, result.output
    return got[0]


def test_help_lists_the_verbs() -> None:
    result = _fgbench("--help")
    assert result.returncode == 0
    assert all(verb in result.stdout for verb in main.VERBS)


def test_help_imports_nothing_heavy() -> None:
    code = """
import contextlib, sys
sys.argv = ["fgbench", "--help"]
from fgbench.cli.main import app
with contextlib.suppress(SystemExit):
    app()
heavy = "torch transformers pandas matplotlib pyarrow aiohttp tokenizers numpy scipy".split()
print("imported", [name for name in heavy if name in sys.modules])
"""
    assert "imported []" in _fgbench(code=code).stdout


def test_unknown_verb_and_option() -> None:
    assert _fgbench("srve").returncode == 2
    assert _fgbench("serve", "--nonsense").returncode == 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--max-batch-size", "0"], "max_batch_size must be at least 1"),
        (["--policy", "fcfs", "--use-skip-join"], "--use-skip-join goes with"),
        (["--swap-space", "-1"], "--swap-space must be"),
        (["--profile", "/no/such/file"], "there is no file"),
        (["--policy", "lifo"], "there is no policy 'lifo'; there are static, fcfs"),
        (["--model", "gpt-9"], 'model "gpt-9" is neither in the catalog'),
        (["--seed", str(2**64)], "seed must be at most"),
        (["--num-device-blocks", str(2**64)], "num_device_blocks must be at most"),
    ],
)
def test_mistakes_get_a_sentence(argv: list[str], says: str) -> None:
    result = _fgbench("serve", *argv)
    assert result.returncode == 2
    assert says in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FGBENCH_DEBUG", "1")
    with pytest.raises(FileNotFoundError) as raised:
        Path("/no/such/file").read_text()
    assert main.tell(raised.value) == 1
    assert "Traceback" in capsys.readouterr().err


def test_interrupt_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(name: str) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "load_verb", interrupted)
    assert CliRunner().invoke(main.app, ["serve"]).exit_code == 130


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_every_verb_ends_on_a_signal_even_where_it_was_ignored(number: signal.Signals) -> None:
    """SIGINT is ignored from the start in a job that a script puts into the background."""
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


def test_serve_help_has_an_example_and_panels() -> None:
    text = _fgbench("serve", "--help").stdout
    assert all(word in text for word in ("fgbench serve --policy", "Model", "Scheduling", "Queue", "Memory"))


# the server's options


def test_defaults() -> None:
    assert _parse() == ServerOptions()
    assert ServerOptions().to_argv() == []


def test_spellings_of_the_artifact() -> None:
    argv = "--model opt-13b --block-size 16 --gpu-memory-utilization 0.9 --swap-space 32 --sched-policy mlfq"
    argv += " --max-batch-size 16 --max-tokens-per-batch 2048 --use-dummy-weights --proactive-offloading"
    options = _parse(*argv.split(), "--use-skip-join")
    config = options.to_engine_config()
    assert (config.model, config.policy, config.dummy_weights) == ("opt-13b", "sj-mlfq", True)
    assert (config.swap_space_bytes, config.offloading) == (32 * 2**30, "proactive")


def test_profile_under_both_names(tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    file.touch()
    for name in ("--profile", "--profiling-file"):
        assert _parse(name, str(file)).to_engine_config().profile == file


def test_a_commands_own_option_goes_before_the_servers() -> None:
    seeds: list[int] = []
    app = typer.Typer()

    @app.command()
    @takes_options
    def verb(server: ServerOptions, seed: Annotated[int, typer.Option()] = 1) -> None:
        seeds.extend([seed, server.seed])

    assert CliRunner().invoke(app, ["--seed", "7"]).exit_code == 0
    assert seeds == [7, 0]


def test_a_verb_takes_several_groups_and_the_earlier_one_has_a_shared_name() -> None:
    got: list[tuple[LoadOptions, ServerOptions, str]] = []
    app = typer.Typer()

    @app.command()
    @takes_options
    def verb(
        load: LoadOptions, server: ServerOptions, rate: Annotated[str, typer.Option("--rates")] = "1,2"
    ) -> None:
        got.append((load, server, rate))

    argv = ["--rates", "3,4", "--num-prompts", "9", "--seed", "7", "--max-batch-size", "5"]
    assert CliRunner().invoke(app, argv).exit_code == 0
    assert got == [(LoadOptions(num_prompts=9, seed=7), ServerOptions(max_batch_size=5), "3,4")]
    assert CliRunner().invoke(app, ["--rate", "3"]).exit_code == 2


@given(
    st.builds(
        ServerOptions,
        model=st.sampled_from(["opt-13b", "./a folder", "-odd"]),
        tokenizer=st.none() | st.just("other"),
        device=st.sampled_from(["auto", "cpu", "cuda"]),
        use_dummy_weights=st.booleans(),
        max_model_len=st.none() | st.integers(2, 9999),
        policy=st.sampled_from(["fcfs", "mlfq"]),
        use_skip_join=st.booleans(),
        starvation_limit=st.floats(0.001, 1e9),
        profile=st.none() | st.just(Path("p q.json")),
        num_device_blocks=st.none() | st.integers(1, 9999),
        swap_space=st.none() | st.floats(0, 512),
        proactive_offloading=st.booleans(),
        max_queue=st.none() | st.integers(0, 9999),
        max_queue_tokens=st.none() | st.integers(0, 9999),
        queue_timeout=st.none() | st.floats(0.001, 1e6),
    )
)
def test_argv_says_the_same_again(options: ServerOptions) -> None:
    assert _parse(*options.to_argv()) == options


def test_the_host_pool_is_sized_by_the_engine_unless_it_is_set() -> None:
    assert _parse().to_engine_config().swap_space_bytes is None
    assert _parse("--swap-space", "0").to_engine_config().swap_space_bytes == 0
    assert _parse("--swap-space", "1.5").to_engine_config().swap_space_bytes == 3 * 2**29


@pytest.mark.parametrize("name", ["nonsense", "noisy:x", "noisy:-1", "noisy"])
def test_a_misspelt_predictor_costs_no_model_load(name: str) -> None:
    with pytest.raises(ValueError, match=r"oracle, noisy:SIGMA|noisy:SIGMA takes"):
        ServerOptions(policy="sprpt", predictor=name).to_engine_config()
