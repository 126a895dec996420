"""What pyproject.toml cannot say: the top-level folder ``datasets`` is installed as ``fgbench/datasets``.
Files that are not Python go with their package: tables, the source of the CPU kernels, experiments."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fgbench", "fgbench.*", "fgengine", "fgengine.*"]), "fgbench.datasets"],
    package_dir={"fgbench.datasets": "datasets"},
    package_data={
        "fgbench.datasets": ["*.csv.gz", "README.md"],
        "fgengine.ops.cpu": ["*.c", "*.h"],
        "fgbench": ["py.typed"],
        "fgbench.report.page": ["page.css", "page.html", "page.js"],
        "fgbench.reproduction": ["published.json", "experiments/*/*.toml"],
        "fgengine": ["py.typed"],
    },
)
