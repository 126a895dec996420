"""Tests of a sweep's options: parsing backends, and saving and reading settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fgbench.cli.backend_option import parse_backend
from fgbench.spec.load import ClientSpec, LoadSpec
from fgbench.spec.sweep import Settings, SweepSpec, parse_rates
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
    assert (url.name, url.url, url.server) == ("fastgen", "http://h:8000/v1", EngineConfig(model="m"))
    named = parse_backend("vllm=h:8000", server)
    assert (named.name, named.url) == ("vllm", "h:8000")
    assert parse_backend("simulated-fcfs", server).simulated
    assert not parse_backend("simulated-fcfs=http://h", server).simulated
    for wrong in ("=http://h", "vllm=", ""):
        with pytest.raises(ValueError, match="--backend"):
            parse_backend(wrong, server)


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
