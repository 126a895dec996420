"""The order of things and the plan of seconds.

On one H100 with 16 cores, each part's estimate beside what it is given (540 s in all):

  correctness  est.  45, given  90   11 processes side by side, 8 s to start. A group's kernels were compiled
                                     for an H100, without one, in 3 to 18 s on two cores; a tiny model's in
                                     three dtypes should take 20, and its 10 servings 2 s each.
  OPT-13B      est.  55, given  75   8 s to start, 2 s of weights, 2 s to pin 4 GiB, 8 s of graphs for 19
                                     batch sizes, 2 s of ceilings; steps 16 (10 points, each at most 23 times
                                     30 ms, and the profiler), swapping 6, loop 6, the servers' profile 5.
  Llama-3-8B   est.  50, given  65   The same without the profile.
  serving      est. 310, given rest  Two servers, 30 s each to start, at three rates each, which leaves 30 to
                                     40 s of load and 17 s until the last answer is there.
  vLLM         est. 110, given 110   Only where it is installed, and then the loads above are shorter.

These are estimates until a run on an H100 has said what it takes; every section's ``seconds`` do.
"""

from __future__ import annotations

import importlib
import time as clock
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from gpu import needs
from gpu.budget import Allowance
from gpu.isolation import Isolated, run_isolated, this_script
from gpu.parts import Job, checking_parts
from gpu.report import Findings, Report
from gpu.setting import Setting

CORRECTNESS_SECONDS = 90.0
MODEL_SECONDS = (75.0, 65.0)
VLLM_SECONDS = 110.0
LEAST_SECONDS = 20.0
"""A part is not begun with less."""
KEPT_BACK = 10.0
"""Of the whole, for ending well."""
MODULES = {"correctness": "checks", "vllm": "vllm_beside"}
"""Where a section is, if not in the module of its name."""
OF_A_MODEL = ("steps", "swapping", "loop")


class Course:
    def __init__(
        self,
        setting: Setting,
        only: Sequence[str],
        seconds: float,
        out: Path | None,
        isolated: Sequence[str] | None,
    ) -> None:
        """``isolated``: the options of the processes that parts run in; None: they run in this one."""
        self.setting = setting
        self.only = only
        self._lacking = {section: names for section in only if (names := needs.missing(section))}
        self.report = Report(seconds / 60.0, out)
        self._isolated = isolated
        self._began = clock.monotonic()
        self._time = Allowance(seconds - min(KEPT_BACK, seconds / 10))
        self.report.save()

    def run(self) -> None:
        model, *others = self.setting.scale.models
        for section, names in self._lacking.items():
            self._skip(section, f"{', '.join(names)} must be installed for it, and is not")
        self.only = [section for section in self.only if section not in self._lacking]
        if "correctness" in self.only:
            parts = [(name, ("correctness",)) for name in checking_parts(self.setting)]
            self._parts(parts, CORRECTNESS_SECONDS)
        for name, seconds in zip((model, *others), MODEL_SECONDS, strict=False):
            wanted = tuple(section for section in OF_A_MODEL if section in self.only)
            if "serving" in self.only and name == model:
                wanted += ("serving",)  # its profile
            if wanted:
                self._parts([(name, wanted)], seconds)
        served = None
        if "serving" in self.only:
            kept = VLLM_SECONDS if "vllm" in self.only and _module("vllm").installed() else 0.0
            served = self._here("serving", self._time.left - kept, model)
        if "vllm" in self.only:
            self._here("vllm", self._time.left, model, served)
        self.report.seconds = clock.monotonic() - self._began
        self.report.save()

    def _parts(self, parts: list[tuple[str, tuple[str, ...]]], seconds: float) -> None:
        seconds = min(seconds, self._time.left)
        if seconds < LEAST_SECONDS and self.setting.on_gpu:
            for section in dict.fromkeys(section for _, sections in parts for section in sections):
                self._skip(section, f"{seconds:.0f} s were left for {', '.join(name for name, _ in parts)}")
            return
        if self._isolated is not None:
            command = this_script(self._isolated)
            run_isolated(parts, self.setting.folder / "parts", command, seconds, self._ended)
            return
        for name, _ in parts:
            job = Job(name, self.setting, Allowance(seconds), self.only)
            self._show(job.run(), job.device)

    def _ended(self, part: Isolated) -> None:
        self._show(part.found, part.device)

    def _show(self, found: Sequence[Findings], device: dict[str, object]) -> None:
        self.report.device = self.report.device or device
        for findings in found:
            self._add(findings)

    def _here(self, section: str, seconds: float, *more: Any) -> Findings:
        findings = Findings(section, seconds)
        began = clock.monotonic()
        try:
            _module(section).run(self.setting, findings, Allowance(seconds), *more)
        except Exception as error:
            findings.fail(f"{type(error).__name__}: {error}")
        findings.seconds = clock.monotonic() - began
        findings.settle()
        self._add(findings)
        return findings

    def _skip(self, section: str, sentence: str) -> None:
        findings = Findings(section, 0.0)
        findings.skip(sentence)
        self._add(findings)

    def _add(self, findings: Findings) -> None:
        name = findings.name
        title, columns = name, {}
        if name not in self._lacking:
            title, columns = _module(name).TITLE, _module(name).COLUMNS
        self.report.add(findings, title, columns, clock.monotonic() - self._began)


def _module(section: str) -> ModuleType:
    """Imported when its turn has come: what is not installed, and only it needs, costs no other section."""
    return importlib.import_module(f"gpu.{MODULES.get(section, section)}")
