"""Pictures as files and as text."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from fgbench.metrics.slo import parse_slo
from fgbench.report.comparison import compare
from fgbench.report.objectives import Objective
from fgbench.report.pictures.contents import pictures_of
from fgbench.report.pictures.paper import write_pictures
from fgbench.report.pictures.picture import Picture, variant
from fgbench.report.pictures.styles import styles_of
from fgbench.report.pictures.terminal import HOLLOW, MARKERS, drawn
from fgbench.results.run import Run

Make = Callable[..., Run]


def pictures(runs: list[Run], slo: str = "jct<0.8") -> list[Picture]:
    (comparison,) = compare(runs)
    return pictures_of(comparison, [Objective(parse_slo(slo), comparison)])


@pytest.mark.slow
def test_each_picture_is_written_as_png_and_as_pdf_with_fonts(sweep: list[Run], tmp_path: Path) -> None:
    from matplotlib.image import imread

    all_pictures = pictures(sweep)
    paths = write_pictures(all_pictures, tmp_path / "new" / "folder")
    names = [f"{picture.name}.{kind}" for picture in all_pictures for kind in ("png", "pdf")]
    assert [path.name for path in paths] == names
    for path in paths:
        data = path.read_bytes()
        if path.suffix == ".png":
            pixels = imread(path)
            assert min(pixels.shape[:2]) > 300
            assert 0.001 < (pixels[..., :3].mean(axis=2) < 0.9).mean() < 0.5  # neither blank nor black
        else:
            assert data.startswith(b"%PDF")
            assert b"/FontFile2" in data  # TrueType, embedded
            assert b"/Type3" not in data
            assert len(data) < 200_000


@pytest.mark.slow
def test_legends_do_not_overlap_the_panels(make_run: Make) -> None:
    """Checks the bounding boxes, with long names and many rates."""
    from fgbench.report.pictures.paper import _figure

    runs = [
        make_run(f"fastgen (offloading proactive, policy my_policies:Number{n})", rate, 1.0 + n, account=True)
        for n in range(6)
        for rate in (0.5, 1.0, 1.05, 2.0, 4.0, 8.0)
    ]
    for picture in pictures(runs):
        figure = _figure(picture)
        figure.draw_without_rendering()
        boxes = [axes.get_tightbbox() for axes in figure.axes if axes.axison]
        (legend,) = figure.legends
        for box in boxes:
            assert box is not None
            assert not box.overlaps(legend.get_window_extent()), picture.name
            assert figure.bbox.x0 <= box.x0, picture.name
            assert box.x1 <= figure.bbox.x1 + 1, picture.name
        assert legend.get_window_extent().x1 <= figure.bbox.x1, picture.name


def test_text_fits_the_terminal_and_shows_everything(sweep: list[Run]) -> None:
    for width in (60, 100):
        for picture in pictures(sweep):
            parts = list(drawn(picture, width))
            text = "\n".join(part.plain for part in parts[1:-1])
            assert max(map(len, text.splitlines())) <= width, picture.name
            assert re.search("[●■░█⠀-⣿]", text), picture.name
            legend = parts[-1].plain
            expected = "queued" if picture.name == "breakdown" else "ours"
            assert expected in legend, picture.name
    latency = "\n".join(part.plain for part in drawn(pictures(sweep)[0], 100))
    assert "│ 95% over seeds" in latency
    assert "··· SLO" in latency


def test_points_above_capacity_are_hollow_in_text_too(make_run: Make) -> None:
    (comparison,) = compare([make_run("a", 1.0), make_run("a", 2.0, 1.5), make_run("a", 3.0, 1.7)])
    object.__setattr__(comparison.of("a")[2].entries[0].summary, "overloaded", True)
    text = "\n".join(part.plain for part in drawn(pictures_of(comparison, [])[0], 100))
    place = variant(styles_of(comparison)["a"], len(MARKERS))
    full, hollow = MARKERS[place], HOLLOW[place]
    assert text.count(full) == 2 * 5 + 1  # in five panels, plus one in the legend
    assert text.count(hollow) == 5
    assert "hollow: above capacity" in text


def test_curves_can_be_distinguished_without_colours(sweep: list[Run]) -> None:
    cdf = next(picture for picture in pictures(sweep) if picture.name == "cdf")
    first = list(drawn(cdf, 100))[1].plain
    assert len({sign for sign in MARKERS if sign in first}) == 2


@pytest.mark.parametrize("latency", [0.0, 1e-6, 1e6])
@pytest.mark.slow
def test_extreme_figures_can_be_drawn(make_run: Make, latency: float) -> None:
    from fgbench.report.pictures.paper import _figure

    rates = count(1)
    for picture in pictures([make_run("a", float(next(rates)), latency) for _ in range(2)]):
        _figure(picture)
        assert list(drawn(picture, 80))
