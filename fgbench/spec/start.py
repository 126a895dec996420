"""The options that say how servers are started: on which cores, and which vLLM."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Annotated, Literal

from fgbench.spec.cores import parse_cores
from fgengine.settings import Setting, check

VllmPreset = Literal["tuned", "default", "artifact"]

_start = functools.partial(Setting, group="Started servers")


@dataclass(frozen=True, slots=True, kw_only=True)
class StartSpec:
    """Options of the start of a server, under their names on the command line.

    Raises ValueError if a value is not allowed.
    """

    cores: Annotated[
        str | None,
        _start("Cores that a started server may use, such as 0-3 or 0,2. Default: all that fgbench may use."),
    ] = None
    vllm_preset: Annotated[
        VllmPreset,
        _start(
            "Settings of vLLM. tuned: the best that we know for this machine, for a strong baseline; "
            "default: as vLLM starts by itself, but computing on all cores; artifact: as in the FastServe "
            "paper."
        ),
    ] = "tuned"
    vllm_python: Annotated[
        str | None,
        _start(
            "The Python that has vLLM installed. Default: $FGBENCH_VLLM_PYTHON, else the Python of fgbench."
        ),
    ] = None

    def __post_init__(self) -> None:
        check(self)
        if self.cores is not None:
            parse_cores(self.cores)

    @property
    def core_numbers(self) -> tuple[int, ...] | None:
        """The numbers of ``cores``; None: all that fgbench may use."""
        return None if self.cores is None else parse_cores(self.cores)
