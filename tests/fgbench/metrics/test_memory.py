"""What run.json says about the server's KV memory."""

from __future__ import annotations

from typing import Any

import pytest

from fgbench.metrics.accounts import MemoryAccount

BEFORE = {"uptime_seconds": 20.0, "pressure_seconds": 1.0, "copy_wait_seconds": 0.5, "finished": 4}
AFTER = {"uptime_seconds": 140.0, "pressure_seconds": 99.0, "copy_wait_seconds": 54.5, "finished": 90}


def test_seconds_are_the_growth_of_the_counters_over_the_load() -> None:
    account = MemoryAccount.of({"server_stats": {"before": BEFORE, "after": AFTER}})
    assert account == MemoryAccount(120.0, 98.0, 54.0)
    assert account.copy_wait_share == pytest.approx(0.45)


def test_seconds_of_replicas_are_their_mean() -> None:
    account = MemoryAccount.of({"server_stats": {"before": BEFORE, "after": AFTER, "replicas": 2}})
    assert account == MemoryAccount(120.0, 49.0, 27.0, replicas=2)
    assert account.copy_wait_share == pytest.approx(0.225)


@pytest.mark.parametrize(
    "info",
    [
        {},
        {"server_stats": None},
        {"server_stats": {"before": BEFORE, "after": None}},
        {"server_stats": {"before": {"uptime_seconds": 1.0}, "after": {"uptime_seconds": 2.0}}},
        {"server_stats": {"before": AFTER, "after": BEFORE}},
        {"server_stats": {"before": BEFORE, "after": {**AFTER, "pressure_seconds": 0.0}}},
    ],
    ids=["none", "null", "no end", "older server", "restarted", "counter fell"],
)
def test_without_valid_counters_there_is_no_account(info: dict[str, Any]) -> None:
    assert MemoryAccount.of(info) is None
