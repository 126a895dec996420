"""docs/metrics.md equals the page generated from the table of metrics."""

from pathlib import Path

from fgbench.metrics.metric import METRICS
from fgbench.metrics.page import SECTIONS, UNITS, page

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_page_equals_the_generated_one() -> None:
    """If this fails, run ``make docs``."""
    assert PAGE.read_text() == page()


def test_every_metric_is_on_the_page() -> None:
    for metric in METRICS:
        assert f"| `{metric.key}` | {metric.label} | {UNITS[metric.unit]} |" in page()
        assert metric.section in SECTIONS
