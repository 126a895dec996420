"""The notebooks in examples/ can be executed on the published runs."""

from __future__ import annotations

from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("seaborn")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.timeout(300)
@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
@pytest.mark.slow
def test_a_notebook_runs_and_shows_its_tables_and_pictures(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)  # outputs are not committed
    nbclient.NotebookClient(
        notebook, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}
    ).execute()
    shown = [output for cell in cells for output in cell.outputs]
    assert not [output.text for output in shown if output.get("name") == "stderr"]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 2
    tables = [output.data["text/html"] for output in shown if "text/html" in output.get("data", {})]
    assert all("fastgen-fcfs" in table for table in tables)
    assert len(tables) == 2
