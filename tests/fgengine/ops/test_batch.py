"""The fields of a batch that the host reads."""

import pytest
import torch

from fgengine.ops.batch import RaggedBatch

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("items", "decodes", "context", "query"),
    [
        ([(9, 1), (40, 1), (0, 3), (60, 1), (0, 5)], 2, 41, 5),
        ([(0, 3), (60, 1)], 0, 0, 3),
        ([(9, 1), (2, 1)], 2, 10, 0),
        ([(0, 2), (0, 1)], 0, 0, 2),
        ([], 0, 0, 0),
    ],
)
def test_decodes_are_counted_at_the_start_of_the_batch(
    items: list[tuple[int, int]], decodes: int, context: int, query: int
) -> None:
    batch = RaggedBatch.build([(start, new, range(5)) for start, new in items], 16, CPU)
    assert batch.num_decodes == decodes
    assert batch.longest_decode_context == context
    assert batch.longest_query == query
