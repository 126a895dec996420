"""Tests of the experiment files: each loads, names what is compared, and runs in simulation."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fgbench.cli.backend_option import backend_specs
from fgbench.cli.main import app
from fgbench.cli.reproduce import settings_of
from fgbench.reproduction.figures import (
    FIGURES,
    SCALES,
    STAND_IN,
    STAND_INS,
    PublishedPanel,
    Scale,
    experiment_file,
    experiments_of,
    published_name,
)
from fgbench.reproduction.published import published_curves
from fgbench.results.run import find_runs, read_info
from fgbench.spec.sweep import Settings

LAPTOP_LACKS = {"llama-sharegpt", "llama-alpaca"}
"""Experiments of a model that is too large for a laptop."""
EXPERIMENTS = experiments_of(list(FIGURES))
FILES = [
    (scale, experiment)
    for scale in SCALES
    for experiment in EXPERIMENTS
    if scale != "laptop" or experiment not in LAPTOP_LACKS
]


def settings(scale: Scale, experiment: str, *arguments: str) -> Settings:
    path = experiment_file(experiment, scale)
    assert path is not None
    return settings_of(path, arguments)


@pytest.mark.parametrize(("scale", "experiment"), FILES)
def test_every_experiment_loads_and_compares_the_systems_of_its_figures(
    scale: Scale, experiment: str
) -> None:
    loaded = settings(scale, experiment)
    specs = backend_specs(loaded)
    panels = [
        panel
        for figure in FIGURES.values()
        for panel in figure.panels
        if panel.experiment == experiment and isinstance(panel, PublishedPanel)
    ]
    for panel in panels:
        published = set(published_curves()[panel.name])
        assert published <= set(map(published_name, specs)), panel.name
    assert all(label in STAND_INS for label in specs if label.endswith(STAND_IN))
    assert all(spec.simulated == (scale == "simulated") for spec in specs.values())


def simulated(text: str, label: str) -> str:
    """Return a simulated backend with the label and the engine's options of a backend."""
    name, *options = text.partition("=")[2].split() if "=" in text else text.split()
    if name.startswith("vllm"):
        return f"{label}=simulated-fcfs --offloading recompute"
    policy = name.partition("-")[2] or "sj-mlfq"
    return shlex.join([f"{label}=simulated-{policy}", *options])


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "experiment"), FILES)
def test_every_experiment_runs_in_simulation(scale: Scale, experiment: str, tmp_path: Path) -> None:
    """At a tenth of its requests, at its lowest and highest rate, with one seed."""
    loaded = settings(scale, experiment)
    rates = f"{min(loaded.sweep.rates)},{max(loaded.sweep.rates)}"
    arguments = ["--rates", rates, "--seeds", 1, "--num-prompts", loaded.load.num_prompts // 10]
    if scale != "simulated":
        labels = backend_specs(loaded)
        for text, label in zip(loaded.sweep.backend, labels, strict=True):
            arguments += ["--backend", simulated(text, label)]
        arguments += ["--device-spec", "a100-40gb"]
    if loaded.load.dataset == "alpaca":  # its file is not part of the repository
        arguments += ["--dataset", "synthetic", "--input-len", "5-50", "--output-len", "5-100"]
    path = experiment_file(experiment, scale)
    assert path is not None
    config = tmp_path / path.name
    config.write_text(path.read_text().replace('vllm-preset = "artifact"\n', ""))
    done = CliRunner().invoke(
        app, list(map(str, ["sweep", "--config", config, *arguments, "--results", tmp_path]))
    )
    assert done.exit_code == 0, done.output
    runs = [read_info(folder) for folder in find_runs(tmp_path)]
    assert len(runs) == 2 * len(loaded.sweep.backend)
    assert all(run["summary"]["ok"] == loaded.load.num_prompts // 10 for run in runs)


def test_no_file_is_without_a_figure() -> None:
    folder = Path(str(experiment_file("sharegpt", "simulated"))).parents[1]
    files = {(path.parent.name, path.stem) for path in folder.glob("*/*")}
    assert files == set(FILES)


def test_an_experiment_that_a_scale_lacks_is_none() -> None:
    assert experiment_file("llama-sharegpt", "laptop") is None
