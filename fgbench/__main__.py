"""``python -m fgbench`` is the program ``fgbench``."""

from fgbench.cli.main import app

app(prog_name="fgbench")
