"""Styles of backends: all differ, and a policy has the same one in every picture."""

from __future__ import annotations

from collections.abc import Callable

from fgbench.report.comparison import compare
from fgbench.report.pictures.paper import DASHES
from fgbench.report.pictures.paper import MARKERS as PAPER
from fgbench.report.pictures.picture import FAMILIES, colour, styles, variant
from fgbench.report.pictures.styles import styles_of
from fgbench.report.pictures.terminal import HOLLOW
from fgbench.report.pictures.terminal import MARKERS as TERMINAL
from fgbench.results.run import Run

Make = Callable[..., Run]


def test_forty_backends_can_be_told_apart() -> None:
    """Eight policies had seven colours, so fcfs and sj-mlfq looked the same."""
    found = styles({f"backend {i}": FAMILIES[i] if i < len(FAMILIES) else None for i in range(40)})
    assert len(set(found.values())) == 40
    for signs in (PAPER, TERMINAL, HOLLOW, DASHES):
        assert len({(colour(style), variant(style, len(signs))) for style in found.values()}) == 40
    assert "▲" not in TERMINAL  # the mark of overload


def test_a_policy_has_its_own_style_whatever_it_is_compared_with(make_run: Make) -> None:
    def with_policy(name: str, policy: str | None, **settings: object) -> Run:
        run = make_run(name, settings=settings or None)
        run.info["backend"]["policy"] = policy
        return run

    fcfs, mlfq = with_policy("fastgen-fcfs", "fcfs"), with_policy("fastgen", "sj-mlfq")
    other, vllm = with_policy("fastgen", "sj-mlfq", offloading="proactive"), with_policy("vllm-16", None)
    (few,) = compare([mlfq, fcfs])
    (many,) = compare([vllm, other, mlfq, fcfs])
    by_name = {many.names[label]: style for label, style in styles_of(many).items()}
    assert styles_of(few) == {"fastgen-fcfs": FAMILIES.index("fcfs"), "fastgen": FAMILIES.index("sj-mlfq")}
    assert by_name["fastgen-fcfs"] == FAMILIES.index("fcfs")
    assert by_name["vllm-16"] == FAMILIES.index("vllm")
    assert len(set(by_name.values())) == 4
    assert few.names == {"fastgen-fcfs": "fastgen-fcfs", "fastgen": "fastgen (sj-mlfq)"}
