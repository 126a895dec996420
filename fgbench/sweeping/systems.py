"""What a sweep measures: started servers, running ones and simulations, each for one run after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fgbench.backends.attached import Attached
from fgbench.backends.kept import Kept
from fgbench.benchmark import Load, run_benchmark
from fgbench.client.display import Display
from fgbench.results.run import Run
from fgbench.workload.datasets import Dataset

if TYPE_CHECKING:
    from fgbench.backends.backend import Backend
    from fgbench.simulated import Progress, Simulation

Bar = Callable[[str, int], AbstractContextManager["Progress"]]
"""Title and number of requests -> what shows how many have ended."""


class System(Protocol):
    @property
    def identity(self) -> dict[str, Any]:
        """All of it that decides a result, as plain JSON."""
        ...

    @property
    def simulated(self) -> bool:
        """It takes no time that a load's length would tell."""
        ...

    def measure(
        self,
        dataset: Dataset,
        load: Load,
        *,
        results: Path,
        point: str,
        display: Display,
        options: Mapping[str, Any],
    ) -> Run:
        """As ``run_benchmark``, which says what is raised."""
        ...

    def close(self) -> None:
        """Leaves nothing running; harmless where nothing was started."""
        ...


class Measured:
    simulated = False

    def __init__(self, backend: Backend, label: str, *, restart: bool) -> None:
        """``restart``: a fresh server for each run, which logs into the run's folder; else one for all, which
        logs to ``server_<label>.log`` beside them. One that runs already is asked anew by each run whether it
        is there, and idle."""
        self._backend = backend
        self._label = label
        self._keep = not restart and not isinstance(backend, Attached)
        self._kept: Kept | None = None

    @property
    def identity(self) -> dict[str, Any]:
        backend = self._backend
        described = {"name": backend.name, "policy": backend.policy, "settings": backend.settings}
        return {**described, "model": backend.model, "url": getattr(backend, "url", None)}

    def measure(
        self,
        dataset: Dataset,
        load: Load,
        *,
        results: Path,
        point: str,
        display: Display,
        options: Mapping[str, Any],
    ) -> Run:
        if self._kept is None and self._keep:
            self._kept = Kept(self._backend, results / f"server_{_file_name(self._label)}.log")
        backend = self._kept or self._backend
        return run_benchmark(
            backend, dataset, load, results=results, display=display, point=point, options=options
        )

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()


class Simulated:
    simulated = True

    def __init__(self, simulation: Simulation, bar: Bar) -> None:
        self._simulation = simulation
        self._bar = bar

    @property
    def identity(self) -> dict[str, Any]:
        one = self._simulation
        return {"name": one.name, "policy": one.policy, "settings": one.settings, "model": one.model}

    def measure(
        self,
        dataset: Dataset,
        load: Load,
        *,
        results: Path,
        point: str,
        display: Display,
        options: Mapping[str, Any],
    ) -> Run:
        from fgbench.simulated import run_simulation

        with self._bar(self._simulation.name, load.num_prompts) as progress:
            return run_simulation(
                self._simulation,
                dataset,
                load,
                results=results,
                progress=progress,
                point=point,
                options=options,
            )

    def close(self) -> None:
        """Nothing runs."""


def _file_name(label: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+]+", "-", label).strip("-")[:100]
