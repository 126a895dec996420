"""Packages that only some jobs need, and which extra of the installation brings each."""

from __future__ import annotations

from importlib.util import find_spec

_ENGINE = ("aiohttp", "gguf", "huggingface_hub", "jinja2", "safetensors", "scipy", "sklearn", "torch")
EXTRA_OF = {
    **dict.fromkeys((*_ENGINE, "transformers", "triton"), "engine"),
    "matplotlib": "plots",
    "duckdb": "sql",
}
"""By the name that is imported."""


class MissingPackage(ModuleNotFoundError):
    """The message names the package, the job that needs it, and the command that installs it."""

    def __init__(self, package: str, job: str) -> None:
        extra = EXTRA_OF.get(package)
        install = f"'fgbench[{extra}]'" if extra else package
        super().__init__(
            f"{job} needs {package}, which is not installed: pip install {install}", name=package
        )


def is_installed(package: str) -> bool:
    return find_spec(package) is not None


def require_package(package: str, job: str) -> None:
    """Raises MissingPackage if a package is not installed.

    Args:
        package: The name that is imported.
        job: What needs it, as the subject of the message's sentence: "FastGen's server".
    """
    if not is_installed(package):
        raise MissingPackage(package, job)
