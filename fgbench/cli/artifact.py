"""The published artifact's spellings of options, and other names they had. Accepted, and in no help."""

from __future__ import annotations

from collections.abc import Collection, Sequence

SPELLINGS = {
    "--sched-policy": "--policy",
    "--profiling-file": "--profile",
    "--request-rate": "--rate",
    "--process-name": "--arrivals",
    "--request-cv": "--cv",
    "--dummy-weights": "--use-dummy-weights",
    "--enforce-eager": "--eager",
    "--enable-chunked-prefill": "--chunked-prefill",
    "--device-memory-utilization": "--gpu-memory-utilization",
    "--seed": "--engine-seed",
}
"""A spelling counts only where the command has no option of that name: ``run --seed`` is the load's."""
SKIP_JOIN, PROACTIVE = "--use-skip-join", "--proactive-offloading"


def translated(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """The arguments of a command, as its own ``flags`` say them.

    Raises:
        ValueError: two of them contradict each other.
    """
    found: list[str] = []
    for position, argument in enumerate(args):
        if argument == "--":
            return found + list(args[position:])
        name, equals, value = argument.partition("=")
        ours = SPELLINGS.get(name)
        found.append(f"{ours}{equals}{value}" if ours in flags and name not in flags else argument)
    if SKIP_JOIN in found and "--policy" in flags:
        found.remove(SKIP_JOIN)
        found = _with_skip_join(found)
    if PROACTIVE in found and "--offloading" in flags:
        found.remove(PROACTIVE)
        found = _proactive(found)
    return found


def _with_skip_join(args: list[str]) -> list[str]:
    """``--use-skip-join`` turns mlfq into sj-mlfq."""
    policy = _value(args, "--policy")
    if policy in ("sj-mlfq", "sj-mlfq-artifact"):
        return args
    if policy not in (None, "mlfq"):
        raise ValueError(f"{SKIP_JOIN} goes with --policy mlfq or sj-mlfq, not {policy}")
    return [*args, "--policy", "sj-mlfq"]


def _proactive(args: list[str]) -> list[str]:
    """``--proactive-offloading`` is ``--offloading proactive``."""
    mode = _value(args, "--offloading")
    if mode not in (None, "reactive", "proactive"):
        raise ValueError(f"{PROACTIVE} and --offloading {mode} contradict each other")
    return [*args, "--offloading", "proactive"]


def _value(args: Sequence[str], flag: str) -> str | None:
    """The last value given to ``flag``."""
    found = None
    for position, argument in enumerate(args):
        if argument == flag and position + 1 < len(args):
            found = args[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found
