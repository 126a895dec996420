"""The number of compute threads while other programs use the cores."""

import itertools
import sys
import threading
import time
from pathlib import Path

import pytest

from fgengine.execution import threads
from fgengine.execution.threads import CpuUse, Threads, demand, threads_for, usage


@pytest.mark.parametrize(
    ("wanted", "limit", "cores", "expected"),
    [
        (0.0, 2, 2, 2),
        (0.3, 2, 2, 2),  # a client
        (0.55, 2, 2, 2),
        (0.65, 2, 2, 1),
        (1.0, 2, 2, 1),
        (1.5, 2, 2, 1),
        (2.0, 2, 2, 2),  # no core is free: we compete for all of them
        (9.0, 2, 2, 2),
        (1.0, 8, 8, 7),
        (4.0, 8, 8, 4),
        (5.0, 8, 8, 8),
        (1.0, 4, 8, 4),  # OMP_NUM_THREADS=4: enough cores remain
        (5.0, 4, 8, 4),
        (0.0, 1, 1, 1),
        (1.0, 1, 1, 1),
    ],
)
def test_cores_are_left_to_others_while_half_are_free(
    wanted: float, limit: int, cores: int, expected: int
) -> None:
    assert threads_for(wanted, limit, cores) == expected


def test_at_least_half_of_the_cores_compute() -> None:
    for cores, limit, tenths in itertools.product(range(1, 20), range(1, 20), range(300)):
        chosen = threads_for(tenths / 10, limit, cores)
        assert min(limit, (cores + 1) // 2) <= chosen <= limit


def after(before: CpuUse, seconds: float, others: float, own: float, waiting: float) -> CpuUse:
    """Return the reading ``seconds`` later. ``others`` and ``own`` are in cores, ``waiting`` in threads."""
    return CpuUse(
        before.at + seconds,
        before.all + (others + own) * seconds,
        before.own + own * seconds,
        before.running + own * seconds,
        before.waiting + waiting * seconds,
    )


def test_demand_of_others_grows_with_our_waiting_time() -> None:
    start = CpuUse(5.0, 100.0, 50.0, 50.0, 10.0)
    assert demand(start, after(start, 0.5, others=1.0, own=1.0, waiting=0.0)) == pytest.approx(1.0)
    assert demand(start, after(start, 0.5, others=1.0, own=1.0, waiting=1.0)) == pytest.approx(2.0)
    assert demand(start, after(start, 0.5, others=0.0, own=2.0, waiting=0.0)) == 0.0
    assert demand(start, after(start, 0.5, others=-0.1, own=2.0, waiting=0.0)) == 0.0, "rounded ticks"
    assert demand(start, after(start, 0.5, others=1.0, own=0.0, waiting=2.0)) == pytest.approx(5.0)
    assert demand(start, start) == 0.0


class Machine:
    """A fake machine: sets the clock, the readings and torch's number of threads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = CpuUse(100.0, 0.0, 0.0, 0.0, 0.0)
        self.set: list[int] = []
        self.count = 4
        monkeypatch.setattr(Threads, "_set_last", (0, 0))
        monkeypatch.setattr(threads.time, "monotonic", lambda: self.now.at)
        monkeypatch.setattr(threads, "our_cores", lambda: frozenset(range(4)))
        monkeypatch.setattr(threads.torch, "get_num_threads", lambda: self.count)

    def threads(self) -> Threads:
        return Threads(lambda: self.now, self.set_threads)

    def set_threads(self, count: int) -> None:
        self.set.append(count)
        self.count = count

    def run(self, others: float, own: float, waiting: float) -> None:
        self.now = after(self.now, 0.3, others, own, waiting)


def test_threads_follow_the_load(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    crew = machine.threads()
    for _ in range(4):
        machine.run(0.0, 4.0, 0.0)
        crew.adapt()
    assert machine.set == []
    for _ in range(4):
        machine.run(1.0, 3.0, 0.0)
        crew.adapt()
    assert machine.set == [3]
    for _ in range(6):
        machine.run(2.0, 2.0, 2.0)  # four other programs
        crew.adapt()
    assert machine.set[-1] == 4
    for _ in range(6):
        machine.run(0.0, 4.0, 0.0)
        crew.adapt()
    assert machine.set[-1] == 4
    assert crew.max_threads == 4


def test_the_next_engine_of_the_process_starts_with_all_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    first = machine.threads()
    for _ in range(4):
        machine.run(1.0, 3.0, 0.0)
        first.adapt()
    assert machine.count == 3
    assert machine.threads().max_threads == 4
    assert machine.count == 4
    machine.count = 2  # the user of the library has set it
    assert machine.threads().max_threads == 2


@pytest.mark.parametrize(("limit", "expected"), [(2.5, 2), (0.5, 1), (4.0, 4), (64.0, 4)])
def test_a_container_computes_with_as_many_threads_as_it_has_cores(
    monkeypatch: pytest.MonkeyPatch, limit: float, expected: int
) -> None:
    machine = Machine(monkeypatch)
    monkeypatch.setattr(threads, "core_limit", lambda: limit)
    assert machine.threads().max_threads == expected
    assert machine.set == ([expected] if expected < 4 else [])


def test_the_load_is_read_once_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch)
    reads = 0

    def read() -> CpuUse:
        nonlocal reads
        reads += 1
        return machine.now

    crew = Threads(read, machine.set.append)
    for _ in range(100):
        machine.now = after(machine.now, 0.01, 0.0, 4.0, 0.0)
        crew.adapt()
    assert 3 <= reads <= 5


def test_all_threads_compute_if_the_system_reports_no_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Threads, "_set_last", (0, 0))  # as if no engine ran in this process before
    monkeypatch.setattr(threads.torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(threads, "core_limit", lambda: 4.0)
    missing = tmp_path / "task"
    assert usage(missing) is None
    crew = Threads(lambda: usage(missing), lambda count: pytest.fail("changed"))
    crew.adapt()
    assert crew.max_threads == 4


def test_usage_sums_up_the_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "core_seconds", lambda: (200.0, 3.0))
    for number, counts in enumerate(["1000000000 500000000 3", "2000000000 0 9"]):
        task = tmp_path / str(number)
        task.mkdir()
        (task / "schedstat").write_text(counts + "\n")
    (tmp_path / "2").mkdir()  # it has just ended
    found = usage(tmp_path)
    assert found is not None
    assert (found.all, found.running, found.waiting) == (203.0, 3.0, 0.5)


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_usage_of_this_machine() -> None:
    before = usage()
    assert before is not None
    until = time.monotonic() + 0.3
    other = threading.Thread(target=time.sleep, args=(0.3,))
    other.start()
    while time.monotonic() < until:
        pass
    now = usage()
    other.join()
    assert now is not None
    assert now.own - before.own > 0.01
    assert now.all - before.all > 0.01
    assert now.at - before.at >= 0.3
