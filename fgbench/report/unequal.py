"""Notes on what could not be made equal between the servers of a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from fgbench.metrics.conditions import CacheAccount, Conditions
from fgbench.spec.cores import cores_text


class Note(NamedTuple):
    """A note under the tables."""

    text: str
    warns: bool
    """Whether the note warns about a problem with the figures."""


def unequal(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Note]:
    """Return the notes on the runs of a table.

    Args:
        runs: Content of the run.json of each run, by the label of its backend.
    """
    labels_of: dict[Note, list[str]] = {}
    for label, infos in runs.items():
        for note in dict.fromkeys([*_of_cache(infos), *_of_usage(infos), *_of_start(infos)]):
            labels_of.setdefault(note, []).append(label)
    found = []
    for note, labels in labels_of.items():
        who = "all backends" if len(labels) == len(runs) > 1 else ", ".join(labels)
        found.append(Note(f"{who}: {note.text}", note.warns))
    return found + _of_cores(runs)


def _of_cache(infos: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Yield what is not known about prefix caches, or was not done."""
    for info in infos:
        account = CacheAccount.of(info)
        if account is None or account.reset:
            continue
        why = account.reset_answer or "no route for this is known"
        conditions = Conditions.of(info)
        if account.hit_share is None:
            effect = "token ids differ between loads, so only a repeated load could be helped"
            if conditions is not None and conditions.texts:
                effect = "texts are the same in every load, so all loads after the first could be helped"
            yield Note(
                f"it was not possible to reset its prefix cache, if it has one ({why}), and it reports no "
                f"hits; {effect}.",
                warns=bool(conditions is not None and conditions.texts),
            )
        elif account.looked_up > 0.0:
            yield Note(f"its prefix cache could not be reset ({why}); its hits were checked.", warns=False)


def _of_usage(infos: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Yield what the answers do not report, or report differently from what was sent."""
    found = [conditions for info in infos if (conditions := Conditions.of(info)) is not None]
    if any(one.texts for one in found):
        yield Note(
            "text was sent instead of token ids, so TTFT includes the server's tokenizer.", warns=False
        )
    if any(one.without_usage for one in found):
        yield Note("its answers hold no usage, so their numbers of tokens could not be checked.", warns=True)
    if any(one.miscounted for one in found):
        sent, counted = (sum(getattr(one, f"{name}_tokens") for one in found) for name in ("sent", "counted"))
        chats = all((info.get("backend") or {}).get("endpoint") == "chat" for info in infos)
        if chats and counted >= sent:
            added = f"{counted - sent:,} tokens to prompts of {sent:,}"
            yield Note(f"its chat template added {added}.", warns=False)
            return
        yield Note(
            f"it counted {counted:,} prompt tokens where {sent:,} were sent, so its prompts were not the "
            "same as sent.",
            warns=True,
        )


def _of_start(infos: Sequence[Mapping[str, Any]]) -> Iterable[Note]:
    """Yield what servers that fgbench started do differently from what was asked of them."""
    for info in infos:
        for note in _started(info).get("notes") or ():
            yield Note(f"{note}.", warns=False)


def _started(info: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return how the server was started; empty for other servers, simulations and older runs."""
    found = info.get("server")
    return found if isinstance(found, dict) else {}


def _of_cores(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Note]:
    """Return a note if the servers of one machine may use different cores.

    For a server that binds its computing threads to fewer cores, and reports it, these count.
    """
    of_label: dict[str, list[str]] = {}
    for label, infos in runs.items():
        for info in infos:
            if (conditions := Conditions.of(info)) is not None and conditions.cores is not None:
                bound = (_started(info).get("in_effect") or {}).get("compute_cores")
                cores = bound or cores_text(conditions.cores)
                if cores not in of_label.setdefault(label, []):
                    of_label[label].append(cores)
    if len({cores for some in of_label.values() for cores in some}) < 2:
        return []
    listed = ", ".join(f"{label} {' or '.join(cores)}" for label, cores in of_label.items())
    return [Note(f"The servers may use different cores: {listed}.", warns=True)]
