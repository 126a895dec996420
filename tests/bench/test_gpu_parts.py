"""What the sections are made of: time, processes that die, kernels' spans, descriptions of models."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from gpu import kernels
from gpu.budget import Allowance
from gpu.checks import Check, SpoiltDevice, run_checks
from gpu.isolation import Isolated, run_isolated
from gpu.profiling import Span, busy_seconds, kernels_of, spans_of
from gpu.report import Findings, Target
from gpu.setting import TINY_SHAPES, hf_config_of
from gpu.steps import fitting
from torch import Tensor

from fgengine.model.catalog import shape_of
from fgengine.model.hf_config import shape_from_config
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_an_allowance_runs_out() -> None:
    clock = Clock()
    whole = Allowance(10.0, clock)
    part = whole.part(4.0)
    clock.now += 3.0
    assert (whole.left, part.left) == (7.0, 1.0)
    assert part.enough_for(1.0)
    assert not part.enough_for(1.5)
    assert whole.part(60.0).left == 7.0


def checks(*works: object) -> list[Check]:
    return [Check(f"check {n}", "it", torch.float32, work) for n, work in enumerate(works)]  # type: ignore[arg-type]


def raising(error: Exception) -> object:
    def work() -> tuple[bool, str]:
        raise error

    return work


def test_a_check_that_raises_is_wrong_and_the_others_go_on() -> None:
    findings, saved = Findings("correctness", 1.0), []
    works = checks(
        lambda: (True, "a"), raising(ValueError("odd")), lambda: (False, "off"), lambda: (True, "b")
    )
    run_checks(works, findings, Allowance(9.0), 0, lambda: saved.append(findings.rows[-1]["right"]))
    assert [row["right"] for row in findings.rows] == [True, False, False, True]
    assert findings.rows[1]["found"] == "ValueError: odd"
    assert saved == [False, True, False, False, False, False, False, True]  # wrong until it has come back
    findings.settle()
    assert findings.status == "wrong"


def test_a_spoilt_gpu_ends_the_process_and_the_next_goes_on_behind_it() -> None:
    works = checks(raising(RuntimeError("CUDA error: an illegal memory access")), lambda: (True, "b"))
    findings = Findings("correctness", 1.0)
    with pytest.raises(SpoiltDevice):
        run_checks(works, findings, Allowance(9.0), 0, lambda: None)
    assert len(findings.rows) == 1
    rest = Findings("correctness", 1.0)
    run_checks(works, rest, Allowance(9.0), 1, lambda: None)
    assert [row["right"] for row in rest.rows] == [True]


def test_a_full_memory_spoils_nothing() -> None:
    findings = Findings("correctness", 1.0)
    works = checks(raising(RuntimeError("CUDA error: out of memory")), lambda: (True, "b"))
    run_checks(works, findings, Allowance(9.0), 0, lambda: None)
    assert [row["right"] for row in findings.rows] == [False, True]


def test_checks_beyond_the_time_are_left_out_with_a_sentence() -> None:
    findings = Findings("correctness", 1.0)
    run_checks(checks(lambda: (True, "")), findings, Allowance(0.0), 0, lambda: None)
    assert findings.rows == []
    assert "left out check 0" in findings.notes[0]


def part(folder: Path, body: str) -> object:
    """A process that does ``body``, which has: after, into, findings, save()."""
    script = folder / "part.py"
    script.write_text(
        textwrap.dedent(
            """
            import json, os, sys, time
            name, seconds, after, into = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
            def findings(section, **more):
                return {"name": section, "budget_seconds": 1.0, "rows": [], "targets": [], **more}
            def save(*found):
                open(into, "w").write(json.dumps({"device": {"type": "abacus"}, "findings": list(found)}))
            """
        )
        + textwrap.dedent(body)
    )

    def command(name: str, seconds: float, after: int, into: Path) -> Sequence[str]:
        return [sys.executable, str(script), name, str(seconds), str(after), str(into)]

    return command


def isolated(tmp_path: Path, body: str, sections: tuple[str, ...], seconds: float = 60.0) -> Isolated:
    ended: list[Isolated] = []
    run_isolated([("it", sections)], tmp_path / "parts", part(tmp_path, body), seconds, ended.append)  # type: ignore[arg-type]
    (one,) = ended
    return one


def test_after_a_check_that_killed_its_process_the_rest_is_run_in_another(tmp_path: Path) -> None:
    body = """
        rows = []
        for n in range(after, 4):
            rows.append({"n": n, "right": False})
            save(findings("correctness", rows=rows))
            if n == 1:
                os._exit(75)
            if n == 2:
                os.kill(os.getpid(), 11)
            rows[-1]["right"] = True
        save(findings("correctness", rows=rows))
    """
    one = isolated(tmp_path, body, ("correctness",))
    rows = [row for found in one.found for row in found.rows]
    assert [(row["n"], row["right"]) for row in rows] == [(0, True), (1, False), (2, False), (3, True)]
    assert one.device == {"type": "abacus"}


def test_a_section_that_killed_its_process_has_failed_and_so_have_those_behind_it(tmp_path: Path) -> None:
    body = """
        save(findings("steps", rows=[{"n": 1}]), findings("swapping", status="failed"))
        print("the last words")
        sys.exit(3)
    """
    one = isolated(tmp_path, body, ("steps", "swapping", "loop"))
    steps, swapping, loop = one.found
    assert (steps.status, steps.rows) == ("done", [{"n": 1}])
    assert swapping.status == loop.status == "failed"
    assert "status 3" in swapping.sentence
    assert "the last words" in swapping.sentence
    assert loop.sentence == "it did not come to it"


def test_one_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpu.isolation.GRACE_SECONDS", 0.1)
    one = isolated(tmp_path, "time.sleep(60)", ("steps",), seconds=0.3)
    assert one.found[0].status == "failed"
    assert "stopped" in one.found[0].sentence


def test_findings_survive_being_written() -> None:
    findings = Findings("steps", 5.0, rows=[{"a": 1.0, "b": float("nan")}])
    findings.targets.append(Target("x", 1.0, 2.0))
    again = Findings.from_json(json.loads(json.dumps(findings.to_json(), allow_nan=False)))
    assert again.targets == findings.targets
    assert again.rows == [{"a": 1.0, "b": None}]


def test_the_worst_part_of_a_section_is_its_status() -> None:
    one, other = Findings("steps", 1.0), Findings("steps", 1.0)
    other.fail("why")
    one.add(other)
    one.add(Findings("steps", 1.0))
    assert (one.status, one.sentence) == ("failed", "why")


def test_kernels_side_by_side_keep_the_device_busy_once() -> None:
    spans = [Span("a", 0, 10), Span("b", 5, 15), Span("a", 20, 30), Span("c", 21, 22)]
    assert busy_seconds(spans) == pytest.approx(25e-6)
    first, *others = kernels_of(spans, times=2)
    assert (first["kernel"], first["seconds"], first["calls"]) == ("a", 10e-6, 1.0)
    assert [one["kernel"] for one in others] == ["b", "c"]


def test_what_ran_is_recorded() -> None:
    left = torch.ones(64, 64)
    spans = spans_of(lambda: left @ left, 3, torch.device("cpu"))
    assert sum(span.name == "aten::matmul" for span in spans) == 3
    assert all(span.end >= span.start for span in spans)


def test_an_operation_without_a_case_is_wrong() -> None:
    class Ops(TorchOps):
        def unheard_of(self) -> None: ...

    found = list(kernels.checks(next(iter(kernels.cases(True))), Ops(), torch.device("cpu")))
    assert [check.name for check in found] == ["unheard_of"]
    assert found[0].work()[0] is False


def test_a_kernel_that_leaves_one_key_out_is_off_by_more_than_rounding() -> None:
    class Forgetful(TorchOps):
        def attention(self, q: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
            shorter = replace(batch, context_lens=batch.context_lens - 1, contexts=batch.contexts)
            return super().attention(q, kv, shorter)

    case = next(case for case in kernels.cases(False)["SmolLM2"] if "decodes" in case.about)
    device = torch.device("cpu")
    for dtype in (torch.float16, torch.bfloat16):
        assert kernels.judge(case, TorchOps(), dtype, device) < kernels.TOLERANCE[dtype] / 2
        assert kernels.judge(case, Forgetful(), dtype, device) > kernels.TOLERANCE[dtype]


@pytest.mark.parametrize(
    ("blocks", "requests", "fits"), [(100, 3, 3), (100, 4, 3), (512, 20, 16), (512, 16, 16), (31, 1, 0)]
)
def test_a_batch_that_does_not_fit_is_cut(blocks: int, requests: int, fits: int) -> None:
    runner = SimpleNamespace(num_device_blocks=blocks, block_size=16)
    assert fitting(runner, requests, context=500) == fits  # type: ignore[arg-type]


@pytest.mark.parametrize("name", [*TINY_SHAPES, "opt-13b", "opt-350m", "llama-3-8b"])
def test_a_config_describes_its_shape(name: str) -> None:
    shape = TINY_SHAPES.get(name) or shape_of(name)
    assert shape_from_config(hf_config_of(shape)) == shape
