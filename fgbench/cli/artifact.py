"""Option names of FastServe's published artifact: fgbench accepts them, but no help lists them."""

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
"""Artifact option -> fgbench option.

An entry applies only if the command has no option with the artifact's name: ``run --seed`` seeds the load.
"""
SKIP_JOIN, PROACTIVE = "--use-skip-join", "--proactive-offloading"


def translated(args: Sequence[str], flags: Collection[str]) -> list[str]:
    """Return ``args`` with the artifact's option names replaced by the command's own ``flags``.

    Raises:
        ValueError: two of the arguments contradict each other.
    """
    found: list[str] = []
    for position, argument in enumerate(args):
        if argument == "--":
            return found + list(args[position:])
        name, equals, value = argument.partition("=")
        flag = SPELLINGS.get(name)
        found.append(f"{flag}{equals}{value}" if flag in flags and name not in flags else argument)
    if SKIP_JOIN in found and "--policy" in flags:
        found.remove(SKIP_JOIN)
        found = _with_skip_join(found)
    if PROACTIVE in found and "--offloading" in flags:
        found.remove(PROACTIVE)
        found = _proactive(found)
    return found


def _with_skip_join(args: list[str]) -> list[str]:
    """Apply ``--use-skip-join``: it turns mlfq into sj-mlfq."""
    policy = _value(args, "--policy")
    if policy in ("sj-mlfq", "sj-mlfq-artifact"):
        return args
    if policy not in (None, "mlfq"):
        raise ValueError(f"{SKIP_JOIN} does not work with --policy {policy}: use --policy mlfq or sj-mlfq")
    return [*args, "--policy", "sj-mlfq"]


def _proactive(args: list[str]) -> list[str]:
    """Apply ``--proactive-offloading``: it means ``--offloading proactive``."""
    mode = _value(args, "--offloading")
    if mode not in (None, "reactive", "proactive"):
        raise ValueError(f"{PROACTIVE} and --offloading {mode} contradict each other: give only one")
    return [*args, "--offloading", "proactive"]


def _value(args: Sequence[str], flag: str) -> str | None:
    """Return the last value given for ``flag``, or None if it is not in ``args``."""
    found = None
    for position, argument in enumerate(args):
        if argument == flag and position + 1 < len(args):
            found = args[position + 1]
        elif argument.startswith(f"{flag}="):
            found = argument.partition("=")[2]
    return found
