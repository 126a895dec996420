"""The marks of runs: what a reader of their figures must know, as one sign, a few words, and a note. Pure.

Every table, list, picture and export takes its marks from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from fgbench.exit_status import client_was_the_limit
from fgbench.metrics.accounts import MachineAccount, analytic_device
from fgbench.metrics.conditions import CacheAccount
from fgbench.metrics.summary import Summary
from fgengine.units import number


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing that a reader of a run's figures must know."""

    sign: str
    """One character, which tables and pictures show next to the run."""
    words: str
    """A few words, for lists of runs."""
    meaning: str
    """What it means and what to do, for below a table. ``{}`` is replaced by the details in parentheses."""

    def note(self, details: Iterable[str] = ()) -> str:
        """Return the text below a table. ``details``: what it is in the marked runs, such as device names."""
        known = ", ".join(sorted({detail for detail in details if detail}))
        return f"{self.sign} {self.meaning.format(f' ({known})' if known else '')}"


OVERLOADED = Mark(
    "▲",
    "above capacity",
    "above capacity: a backlog grew while requests arrived, so latencies depend on how many requests were "
    "sent. Compare such runs only at the same number of prompts.",
)
UNJUDGED = Mark(
    "△",
    "perhaps above capacity",
    "it is not known whether the load was above capacity{}, so latencies may depend on how many requests "
    "were sent. Send more requests.",
)
DISTURBED = Mark(
    "◆",
    "other programs used the machine",
    "other programs took part of the machine's CPU time during the run, so its figures are not reliable. "
    "Run it again when the machine is idle.",
)
CACHED = Mark(
    "◐",
    "prompts were in a prefix cache",
    "the server found prompts of an earlier load in its prefix cache, so TTFT and JCT are too low. Run it "
    "again with a server without this cache (vLLM: --no-enable-prefix-caching, SGLang: "
    "--disable-radix-cache), or one whose cache can be reset (vLLM: VLLM_SERVER_DEV_MODE=1).",
)
CLUMPED = Mark(
    "▤",
    "tokens arrived in clumps",
    "tokens arrived in clumps{}, so TPOT and ITL show how they were sent, not how they were computed. TTFT "
    "and JCT are right, apart from the wait for a clump. A proxy may buffer the stream, or the server "
    "sends several tokens in a message.",
)
CLIENT = Mark(
    "◷",
    "the client was the limit",
    "the client sent requests too late to measure the server. Use a faster client machine or a lower rate.",
)
ANALYTIC = Mark(
    "ƒ",
    "an analytic device: step times computed from published figures",
    "an analytic device{}: step times were computed from published figures, not measured. Use them to "
    "compare schedulers, not to predict what the device does.",
)
INCOMPLETE = Mark(
    "◌",
    "not complete",
    "not a complete run: requests that had not ended are missing, mostly slow ones, so latencies look too "
    "low. The pictures leave this run out. Run it again to compare it.",
)
MAX_TOGETHER = 1.5
"""Mean number of tokens that may arrive together in a run that is not marked."""
ALL = (OVERLOADED, UNJUDGED, DISTURBED, CACHED, CLUMPED, CLIENT, ANALYTIC, INCOMPLETE)
"""All marks, in the order in which tables show them."""


def marks_of(info: Mapping[str, Any], summary: Summary) -> dict[Mark, str]:
    """Return the marks of a run, each with its detail, which may be empty.

    Args:
        info: The run's run.json.
        summary: Its figures.

    " ".join(mark.sign for mark in marks_of(run.info, run.summary))
    """
    machine, cache = MachineAccount.of(info), CacheAccount.of(info)
    device, together = analytic_device(info), summary.tokens_per_moment or 0.0
    applies = {
        OVERLOADED: bool(summary.overloaded),
        UNJUDGED: bool(summary.why_unjudged),
        DISTURBED: machine is not None and machine.busy,
        CACHED: cache is not None and cache.helped,
        CLUMPED: together > MAX_TOGETHER,
        CLIENT: client_was_the_limit(info, summary) is not None,
        ANALYTIC: device is not None,
        INCOMPLETE: info.get("status") != "complete",
    }
    details = {
        UNJUDGED: summary.why_unjudged,
        CLUMPED: f"{number(together)} at a time",
        ANALYTIC: device or "",
    }
    return {mark: details.get(mark, "") for mark in ALL if applies[mark]}


def merged(marks: Iterable[Mapping[Mark, str]]) -> dict[Mark, list[str]]:
    """Return the marks of several runs, each with all its details."""
    found: dict[Mark, list[str]] = {mark: [] for mark in ALL}
    for each in marks:
        for mark, detail in each.items():
            found[mark].append(detail)
    return {mark: details for mark, details in found.items() if details}


def signs(marks: Iterable[Mark]) -> str:
    """Return the signs after a name, such as ``" ▲ ◆"``; empty if there are none."""
    return "".join(f" {mark.sign}" for mark in marks)


def notes_on(marks: Iterable[Mapping[Mark, str]]) -> list[str]:
    """Return one note for each mark of these runs."""
    return [mark.note(details) for mark, details in merged(marks).items()]
