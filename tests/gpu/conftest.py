"""Limits the threads of the tests in this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def few_threads() -> Iterator[None]:
    """Use one thread without a GPU, and a share of the cores with one.

    Without a GPU, the models are so small that more threads only cost time. With a GPU, the workers of
    pytest-xdist share the cores; otherwise each of them would start as many threads as there are cores.
    """
    before = torch.get_num_threads()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, before // workers) if torch.cuda.is_available() else 1)
    yield
    torch.set_num_threads(before)
