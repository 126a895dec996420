"""The ranking of the requests on the device, with changing priorities."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fgengine.request import Request, SamplingParams
from fgengine.scheduling.policy import Priority
from fgengine.scheduling.ranking import Ranking

PARAMS = SamplingParams(max_tokens=4)


class Places:
    """A priority function with settable priorities; it counts its calls."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}
        self.asked = 0

    def __call__(self, request: Request) -> Priority:
        self.asked += 1
        return (self.of[request.id],)


def ranking_of(places: dict[str, float]) -> tuple[Ranking, Places, dict[str, Request]]:
    priority = Places()
    priority.of.update(places)
    requests = {id: Request.new(id, [0], PARAMS, 0.0) for id in places}
    ranking = Ranking(priority)
    for request in requests.values():
        ranking.add(request)
    return ranking, priority, requests


@given(st.data())
def test_descending_yields_descending_priorities_after_any_changes(data: st.DataObject) -> None:
    """Priorities that became larger must be touched; smaller ones are detected without a touch."""
    names = [f"r{i}" for i in range(8)]
    values = st.floats(0, 100)
    ranking, priority, requests = ranking_of({name: data.draw(values) for name in names})
    members = dict(requests)
    for _ in range(data.draw(st.integers(0, 12))):
        name, value = data.draw(st.sampled_from(names)), data.draw(values)
        if data.draw(st.booleans()):
            ranking.discard(name)
            members.pop(name, None)
        elif name not in members:
            ranking.add(requests[name])
            members[name] = requests[name]
        else:
            grows = value > priority.of[name]
            priority.of[name] = value
            if grows:
                ranking.touch([requests[name]])
        if data.draw(st.booleans()):
            got = [(place[0], request.id) for place, request in ranking.descending()]
            assert sorted(id for _, id in got) == sorted(members)
            assert [place for place, _ in got] == sorted((priority.of[id] for id in members), reverse=True)


def test_a_rebuilt_ranking_uses_the_new_priorities() -> None:
    ranking, priority, requests = ranking_of({"a": 1.0, "b": 2.0, "c": 3.0})
    assert [r.id for r in ranking.ascending()] == ["a", "b", "c"]
    ranking.discard("b")
    priority.of = {"a": 3.0, "b": 2.0, "c": 1.0}
    ranking.rebuild()
    assert [r.id for r in ranking.ascending()] == ["c", "a"]
    assert "b" not in ranking
    ranking.add(requests["b"])
    assert "b" in ranking
    assert [request.id for _, request in ranking.descending()] == ["a", "b", "c"]


def test_the_last_of_thousands_is_found_without_reading_the_others() -> None:
    ranking, priority, _ = ranking_of({str(i): float(i) for i in range(5000)})
    next(iter(ranking.descending()))
    priority.asked = 0
    assert [r.id for _, r in zip(range(3), (r for _, r in ranking.descending()), strict=False)] == [
        "4999",
        "4998",
        "4997",
    ]
    assert priority.asked <= 4
