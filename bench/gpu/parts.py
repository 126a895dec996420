"""What is run in one process: a group of kernels, the tiny models, or the sections of one large model.

A GPU is used only here. What spoils it, or hangs, ends with the process of its part, and the next part gets
all of the GPU's memory.
"""

from __future__ import annotations

import os
import time as clock
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fgbench.results.files import write_json
from gpu import correctness, kernels, loop, steps, swapping
from gpu.budget import Allowance
from gpu.checks import run_checks
from gpu.report import Findings, describe
from gpu.setting import Setting

KERNELS, MODELS = "kernels", "model"
SHARES = {"steps": 0.5, "swapping": 0.6, "loop": 0.9}
"""Of the time that is left when a section of a large model begins, so that the next gets its turn."""
OF_A_MODEL: dict[str, Callable[[Setting, Findings, Allowance, str], None]] = {
    "steps": steps.run,
    "swapping": swapping.run,
    "loop": loop.run,
}


@dataclass
class Job:
    """A part at work: what it found so far, kept in a file as it goes."""

    name: str
    setting: Setting
    time: Allowance
    only: Collection[str]
    after: int = 0
    """Checks that a process before this one has done."""
    into: Path | None = None

    def __post_init__(self) -> None:
        self.findings: list[Findings] = []
        self.device: dict[str, Any] = {}

    def run(self) -> list[Findings]:
        """Raises SpoiltDevice where a process of its own should go on with the rest."""
        self.device = describe(self.setting.device)
        kind, _, which = self.name.partition(": ")
        if kind == MODELS:
            self._checks(correctness.checks(self.setting, which))
        elif kind == KERNELS:
            self._kernels(which)
        else:
            self._large_model()
        return self.findings

    def save(self) -> None:
        if self.into is not None:
            found = [findings.to_json() for findings in self.findings]
            write_json(self.into, {"device": self.device, "findings": found})

    def begin(self, section: str) -> Findings:
        findings = Findings(section, self.time.left)
        findings.keep = self.save
        self.findings.append(findings)
        self.save()
        return findings

    def _kernels(self, group: str) -> None:
        if not self.setting.on_gpu and os.environ.get("TRITON_INTERPRET") != "1":
            self.begin("correctness").note(
                "kernels are not checked: without a GPU they need TRITON_INTERPRET=1"
            )
            return
        from fgengine.ops.triton.ops import TritonOps

        self._checks(kernels.checks(group, TritonOps(), self.setting.device))

    def _checks(self, checks: Any) -> None:
        findings, began = self.begin("correctness"), clock.monotonic()
        try:
            run_checks(checks, findings, self.time, self.after, self.save)
        finally:
            findings.seconds = clock.monotonic() - began
            findings.settle()
            self.save()

    def _large_model(self) -> None:
        for section, run in OF_A_MODEL.items():
            if section == "loop":  # whose profiler may go on slowing the process down
                self._profile()
            if section not in self.only:
                continue
            findings, began = self.begin(section), clock.monotonic()
            findings.fail("the process died in it")  # until it has not
            self.save()
            time = self.time.part(SHARES[section] * self.time.left)
            findings.budget_seconds = time.left
            try:
                run(self.setting, findings, time, self.name)
                findings.status, findings.sentence = "done", ""
            except Exception as error:
                findings.fail(f"{type(error).__name__}: {error}")
            findings.seconds = clock.monotonic() - began
            findings.settle()
            findings.details = {self.name: findings.details}
            self.save()
        for findings in self.findings:
            if findings.name == "steps" and findings.rows:
                self._explain(findings)
        self.setting.drop_runner()

    def _explain(self, findings: Findings) -> None:
        try:
            steps.explain(self.setting, findings, self.time, self.name)
        except Exception as error:
            findings.note(f"kernels are not listed: {type(error).__name__}: {error}")
        self.save()

    def _profile(self) -> None:
        """What the servers will schedule by, while the model is here."""
        if "serving" not in self.only or self.name != self.setting.scale.models[0]:
            return
        from fgengine import profiler

        try:
            runner = self.setting.runner(self.name)
            profile = profiler.make_profile(self.setting.path_of(self.name), runner, self.setting.scale.grid)
            profile.save(self.setting.profile_path)
        except Exception as error:
            self.begin("serving").fail(f"there is no profile: {type(error).__name__}: {error}")
            self.save()


def checking_parts(setting: Setting) -> list[str]:
    """Those of the section correctness: run side by side, for what takes their time is compiling kernels."""
    of_models = [f"{MODELS}: {name}" for name in correctness.models(setting)]
    return of_models + [f"{KERNELS}: {group}" for group in kernels.cases(not setting.on_gpu)]
