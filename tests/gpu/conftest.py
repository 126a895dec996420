"""How many threads the tests of this folder take."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Without a GPU models are so small that a second thread is only waited for. With one, workers of
    pytest-xdist share the cores; else each would start as many threads as there are cores."""
    before = torch.get_num_threads()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, before // workers) if torch.cuda.is_available() else 1)
    yield
    torch.set_num_threads(before)
