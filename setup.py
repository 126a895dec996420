"""What pyproject.toml cannot say: the top-level folder ``datasets`` is installed as ``fgbench/datasets``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fgbench", "fgbench.*", "fgengine", "fgengine.*"]), "fgbench.datasets"],
    package_dir={"fgbench.datasets": "datasets"},
    package_data={"fgbench.datasets": ["*.csv.gz", "README.md"]},
)
