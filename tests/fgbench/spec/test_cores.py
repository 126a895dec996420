import os

import pytest

from fgbench.backends import affinity
from fgbench.backends.affinity import check_cores, own_cores
from fgbench.spec.cores import cores_text, parse_cores
from fgbench.spec.start import StartSpec


@pytest.mark.parametrize(
    ("text", "cores"),
    [
        ("0", (0,)),
        ("0-3", (0, 1, 2, 3)),
        ("3,0-1", (0, 1, 3)),
        ("0-7:2", (0, 2, 4, 6)),
        ("0-2, 1-4", (0, 1, 2, 3, 4)),
    ],
)
def test_lists_are_read_as_taskset_reads_them(text, cores):
    assert parse_cores(text) == cores
    assert parse_cores(cores_text(cores)) == cores


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "0,,1", "0-7:0", "0:2", "99999", "0 1", "0x1"])
def test_what_is_no_list_is_refused(text):
    with pytest.raises(ValueError, match=r"--cores .* is not a list of cores: write it like 0-3 or 0,2,4"):
        StartSpec(cores=text)


def test_neighbours_are_written_as_a_range():
    assert cores_text([6, 0, 1, 2, 4]) == "0-2,4,6"
    assert cores_text([]) == ""


def test_cores_must_exist_and_checking_changes_nothing():
    before = os.sched_getaffinity(0)
    check_cores(own_cores())
    with pytest.raises(ValueError, match="a process cannot use core 4000-4001 here; fgbench may use"):
        check_cores([*own_cores(), 4000, 4001])
    assert os.sched_getaffinity(0) == before


def test_a_system_without_pinning_is_a_clear_error(monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    with pytest.raises(ValueError, match="--cores does not work on this system"):
        check_cores([0])
    monkeypatch.delattr(os, "sched_getaffinity")
    assert affinity.own_cores() == tuple(range(os.cpu_count()))
