"""Is the engine right on this GPU, and how near to what the GPU can do? One command, under nine minutes.

    python bench/gpu_check.py                         # all of it, for one H100; the JSON goes to results/gpu/
    python bench/gpu_check.py --only correctness      # the kernels first
    python bench/gpu_check.py --only steps --profile  # and where a step's time goes
    python bench/gpu_check.py --device cpu            # tries the script itself, on models of no size

Sections: correctness (a: kernels, logits, tokens under preemption and swapping), steps (b: OPT-13B and
Llama-3-8B beside their floors), swapping (c), loop and serving (d: the engine's loop; sj-mlfq against fcfs
with the paper's settings), vllm (e: beside it, where it is installed). A table for each, and last a line of
JSON, which --out keeps from the first section on. It needs no network.

A section whose packages are not installed is left out, with their names. The time is kept: what it does not
suffice for is left out, with a sentence. Exit codes: 1 when a check is wrong or a section failed (a missed
target is a figure, not a failure), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpu.setting import Setting

ROOT = Path(__file__).resolve().parent.parent
SECTIONS = ("correctness", "steps", "swapping", "loop", "serving", "vllm")


def main() -> int:
    options = _parse()
    _prepare(options.device)
    from gpu.needs import missing

    if lacking := missing():
        print(f"not installed here, and needed for anything: {', '.join(lacking)}", file=sys.stderr)
        return 1
    import torch
    from gpu.setting import REAL, TINY, Setting

    if options.device == "cuda" and not torch.cuda.is_available():
        print("there is no CUDA device here; --device cpu tries the script itself", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="gpu_check-") as temporary:
        out = options.out or (_default_out() if options.device == "cuda" else None)
        folder = options.folder or (out.with_suffix("") if out else Path(temporary))
        folder.mkdir(parents=True, exist_ok=True)
        setting = Setting(
            device=torch.device(options.device),
            scale=REAL if options.device == "cuda" else TINY,
            folder=folder.resolve(),
            profile_every_step=options.profile,
        )
        if options.part is not None:
            return _run_part(options, setting)
        return _run_all(options, setting, out)


def _run_all(options: argparse.Namespace, setting: Setting, out: Path | None) -> int:
    from gpu.course import Course

    isolated = setting.on_gpu or options.isolate
    shared = ["--device", options.device, "--only", ",".join(options.only), "--folder", str(setting.folder)]
    shared += ["--profile"] if options.profile else []
    course = Course(setting, options.only, options.minutes * 60.0, out, shared if isolated else None)
    try:
        course.run()
    except KeyboardInterrupt:
        print("interrupted; what was found is kept" if out else "interrupted", file=sys.stderr)
        return 130
    finally:
        print(json.dumps(course.report.to_json(), allow_nan=False))
        if out is not None:
            print(f"written: {out}", file=sys.stderr)
    return int(course.report.wrong)


def _run_part(options: argparse.Namespace, setting: Setting) -> int:
    from gpu.budget import Allowance
    from gpu.checks import SpoiltDevice
    from gpu.isolation import SPOILT
    from gpu.parts import Job

    job = Job(options.part, setting, Allowance(options.seconds), options.only, options.after, options.into)
    try:
        job.run()
    except SpoiltDevice:
        sys.stdout.flush()
        os._exit(SPOILT)  # what Python would tidy up needs the GPU
    return 0


def _prepare(device: str) -> None:
    """What must be set before torch or Triton is imported, here and in the processes started from here."""
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
        os.environ["OMP_NUM_THREADS"] = "1"  # models of no size only wait for a second thread
    else:
        os.environ.pop("TRITON_INTERPRET", None)
        os.environ.setdefault("OMP_NUM_THREADS", "4")  # parts that run side by side share the cores
    if find_spec("platformdirs") is None:  # it only says where caches are
        os.environ.setdefault("FGBENCH_CACHE", str(Path.home() / ".cache" / "fgbench"))


def _default_out() -> Path:
    from gpu.report import ask_driver

    device = re.sub(r"[^a-z0-9]+", "-", (ask_driver("name") or "gpu").lower()).strip("-")
    return ROOT / "results" / "gpu" / f"{time.strftime('%Y%m%d-%H%M%S')}_{device}.json"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument(
        "--only", type=_sections, default=SECTIONS, metavar="SECTION,...", help="of " + ", ".join(SECTIONS)
    )
    parser.add_argument("--minutes", type=_minutes, default=9.0, help="how long it may take in all")
    parser.add_argument(
        "--out", type=Path, help="where the JSON goes; default on a GPU: results/gpu/TIME_DEVICE.json"
    )
    parser.add_argument(
        "--folder", type=Path, help="for run folders, profile and logs; default: --out without its suffix"
    )
    parser.add_argument(
        "--profile", action="store_true", help="print a step's kernels by time also where it meets its target"
    )
    parser.add_argument(
        "--isolate", action="store_true", help="on a CPU too run every part in a process of its own"
    )
    own = ("part", str, None), ("seconds", float, None), ("after", int, 0), ("into", Path, None)
    for name, kind, default in own:  # how it starts itself
        parser.add_argument(f"--{name}", type=kind, default=default, help=argparse.SUPPRESS)
    return parser.parse_args()


def _sections(text: str) -> Sequence[str]:
    chosen = [name.strip() for name in text.split(",")]
    if unknown := [name for name in chosen if name not in SECTIONS]:
        raise argparse.ArgumentTypeError(f"no section is called {unknown[0]!r}: {', '.join(SECTIONS)}")
    return [name for name in SECTIONS if name in chosen]


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 0.1 <= minutes <= 600:
        raise argparse.ArgumentTypeError("must be between 0.1 and 600")
    return minutes


if __name__ == "__main__":
    sys.exit(main())
