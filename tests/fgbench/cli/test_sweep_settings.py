"""Tests of a sweep's options: parsing backends, and saving and reading settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgbench.cli.backend_option import backend_specs, parse_backend
from fgbench.spec.client import ClientSpec
from fgbench.spec.load import LoadSpec
from fgbench.spec.sweep import Settings, SweepSpec, parse_rates
from fgbench.sweeping.prepared import prepare
from fgengine.config import EngineConfig


def test_backends_are_parsed() -> None:
    server = EngineConfig(max_batch_size=16)
    plain = parse_backend("fastgen-fcfs", server)
    assert (plain.label, plain.name, plain.url) == ("fastgen-fcfs", "fastgen-fcfs", None)
    assert plain.server == EngineConfig(max_batch_size=16, policy="fcfs")
    own = parse_backend(" fastgen-sprpt  --predictor 'noisy:0.3' ", server)
    assert own.label == "fastgen-sprpt --predictor noisy:0.3"
    assert (own.server.predictor, own.server.max_batch_size) == ("noisy:0.3", 16)
    same = parse_backend("fastgen --max-batch-size 256", server)  # the default value, given explicitly
    assert same.server.max_batch_size == 256
    url = parse_backend("http://h:8000/v1 --model m", server)
    assert (url.name, url.url, url.server) == ("", "http://h:8000/v1", EngineConfig(model="m"))
    named = parse_backend("vllm=h:8000", server)
    assert (named.name, named.url) == ("vllm", "h:8000")
    assert parse_backend("simulated-fcfs", server).simulated
    for ours in ("simulated-fcfs=http://h", "fastgen=http://h", "fastgen-fcfs=h:1"):
        with pytest.raises(ValueError, match="is a name of our own engine, and the server at"):
            parse_backend(ours, server)
    for wrong in ("=http://h", "vllm=", ""):
        with pytest.raises(ValueError, match="--backend"):
            parse_backend(wrong, server)


@pytest.mark.parametrize(
    ("text", "kind", "name"),
    [
        ("fastgen=simulated-sj-mlfq --offloading proactive", "simulated", "fastgen"),
        ("vllm-stand-in=simulated-fcfs --num-device-blocks 400", "simulated", "vllm-stand-in"),
        ("big=fastgen-fcfs --max-batch-size 512", "fastgen", "big"),
        ("vllm-16=vllm --max-num-seqs 16", "vllm", "vllm-16"),
        ("vllm=vllm-chunked", "vllm", "vllm"),
        ("own=fastgen-package.module:Policy", "fastgen", "own"),
        ("fastgen-fcfs", "fastgen", "fastgen-fcfs"),
        ("fastgen --policy srpt", "fastgen", "fastgen-srpt"),
        ("simulated-sj-mlfq", "simulated", "simulated"),
        ("x=command: run {port}", "command", "x"),
        ("http://h:1", "url", "h:1"),
        ("vllm=h:1", "url", "vllm"),
        ("x=fastgen:8000", "url", "x"),
        ("x=fastgen-box:8000/v1", "url", "x"),
        ("x=localhost", "url", "x"),
        ("x=gpu.example.org", "url", "x"),
    ],
)
def test_a_name_for_a_backend_is_its_name_in_tables(text: str, kind: str, name: str) -> None:
    spec = parse_backend(text, EngineConfig())
    assert (spec.kind, spec.table_name) == (kind, name)
    if spec.title:
        assert spec.label == spec.title == name
        assert "=" not in spec.name


def test_what_follows_a_name_must_be_a_backend_or_a_url() -> None:
    with pytest.raises(ValueError, match="there is no backend 'simulate-fcfs': use fastgen"):
        parse_backend("x=simulate-fcfs", EngineConfig())
    with pytest.raises(ValueError, match="lacks a name or a backend: write it like vllm-16=vllm"):
        parse_backend("=simulated", EngineConfig())
    with pytest.raises(ValueError, match="--backend simulated-fcfs and --policy srpt contradict"):
        parse_backend("x=simulated-fcfs --policy srpt", EngineConfig())


@pytest.mark.parametrize(
    ("backends", "name"),
    [
        (("a=simulated", "a=simulated-fcfs"), "a"),
        (("simulated", "simulated=simulated-fcfs"), "simulated"),
        (("simulated=simulated-fcfs", "simulated --max-batch-size 4"), "simulated"),
        (("vllm=http://h:1", "vllm=http://h:2"), "vllm"),
        (("vllm=http://h:1", "vllm"), "vllm"),
        (("a=command: run {port}", "a=command: run --fast {port}"), "a"),
        (("a=command: run {port}", "a=fastgen"), "a"),
    ],
)
def test_two_backends_with_one_name_are_refused(backends: tuple[str, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"two backends have the name {name}: give one of them another"):
        backend_specs(of_backends(*backends))


def test_the_same_backend_with_other_options_needs_no_name() -> None:
    """Tables add the options that differ."""
    specs = backend_specs(of_backends("simulated", "simulated --max-batch-size 4", "b=simulated"))
    assert list(specs) == ["simulated", "simulated --max-batch-size 4", "b"]
    with pytest.raises(ValueError, match="--backend simulated is given twice: leave one out"):
        backend_specs(of_backends("simulated", "simulated"))


def of_backends(*backends: str) -> Settings:
    return Settings(
        sweep=SweepSpec(backend=backends, rates=(1.0,)),
        load=LoadSpec(),
        client=ClientSpec(),
        server=EngineConfig(),
    )


def test_settings_survive_saving_and_reading() -> None:
    settings = Settings(
        sweep=SweepSpec(
            backend=("fastgen", "x=http://h:1"), rates=parse_rates("0.5, inf"), seeds=3, restart=True
        ),
        load=LoadSpec(dataset_path=Path("a/b"), num_prompts=7, max_error_rate=0.2),
        client=ClientSpec(request_timeout=5.0),
        server=EngineConfig(profile=Path("p.json"), offloading="proactive", engine_seed=9),
    )
    read = Settings.from_json(json.loads(json.dumps(settings.to_json(), allow_nan=False)))
    assert read == settings
    assert read.plan == settings.plan
    for damaged in (
        {},
        {"sweep": {"backend": 3}},
        settings.to_json() | {"sweep": {"seeds": "x"}},
        settings.to_json() | {"sweep": {"seeds": 0}},
    ):
        with pytest.raises(ValueError, match=r"seeds|not a sweep's settings"):
            Settings.from_json(damaged)


def test_a_varied_option_gives_a_backend_for_each_value() -> None:
    def labels(*vary: str, backend: tuple[str, ...] = ("fastgen", "v=vllm --dtype float32")) -> list[str]:
        sweep = SweepSpec(backend=backend, vary=vary, rates=(1.0,))
        settings = Settings(sweep=sweep, load=LoadSpec(), client=ClientSpec(), server=EngineConfig())
        return list(backend_specs(settings.checked()))

    assert labels("max-batch-size=16,64") == [
        "fastgen --max-batch-size 16",
        "fastgen --max-batch-size 64",
        "v-16",
        "v-64",
    ]
    both = labels("max_batch_size=16,64", "--policy=fcfs,srpt", backend=("fastgen",))
    assert both[0] == "fastgen --max-batch-size 16 --policy fcfs"
    assert len(both) == 4
    for wrong, message in (
        ("max-batch-size", "cannot be read: write OPTION=VALUE,VALUE"),
        ("=1,2", "cannot be read"),
        ("max-batch-size=", "cannot be read"),
        ("max-batch-size=16,16", "16 is given twice"),
        ("no-such-option=1,2", "no-such-option"),
    ):
        with pytest.raises(ValueError, match=message):
            labels(wrong, backend=("fastgen",))
    with pytest.raises(ValueError, match="whose options are not fgbench's"):
        labels("max-batch-size=16,64", backend=("vllm=http://h:1",))
    with pytest.raises(ValueError, match="40 backends are given: a sweep takes 1 to 32"):
        labels(f"max-batch-size={','.join(map(str, range(1, 41)))}", backend=("fastgen",))


def test_a_point_of_a_running_server_is_repeated_with_the_sweeps_tokenizer(tmp_path: Path) -> None:
    load = LoadSpec(dataset="synthetic", num_prompts=2)

    def repeated(**server: str) -> object:
        sweep = SweepSpec(backend=("s=http://127.0.0.1:1",), rates=(1.0,))
        settings = Settings(sweep=sweep, load=load, client=ClientSpec(), server=EngineConfig(**server))
        prepared = prepare(settings, backend_specs(settings), lambda line: None)
        return prepared.repeating_options(next(prepared.first_points()))["tokenizer"]

    assert repeated(tokenizer=str(tmp_path)) == str(tmp_path)
    assert repeated(model="opt-125m") == "opt-125m"
    assert repeated() is None
