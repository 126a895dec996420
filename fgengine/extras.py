"""Optional packages, and the extra of the installation that contains each."""

from __future__ import annotations

from importlib.util import find_spec

_ENGINE = (
    *("aiohttp", "gguf", "huggingface_hub", "jinja2", "llguidance", "prometheus_client"),
    *("safetensors", "scipy", "sklearn", "torch"),
)
EXTRA_OF = {
    **dict.fromkeys((*_ENGINE, "transformers", "triton"), "engine"),
    **dict.fromkeys(("matplotlib", "plotly"), "plots"),
    "duckdb": "sql",
}
"""Import name of the package -> name of the extra."""


class MissingPackage(ModuleNotFoundError):
    """An optional package is not installed. The message has its name, the job and the install command."""

    def __init__(self, package: str, job: str) -> None:
        extra = EXTRA_OF.get(package)
        install = f"'fgbench[{extra}]'" if extra else package
        super().__init__(
            f"{job} needs {package}, which is not installed: pip install {install}", name=package
        )


def is_installed(package: str) -> bool:
    """Whether the package with this import name is installed."""
    return find_spec(package) is not None


def require_package(package: str, job: str) -> None:
    """Raise MissingPackage if a package is not installed.

    Args:
        package: the name that is imported.
        job: what needs the package, as the subject of the error message, such as "FastGen's server".

        require_package("torch", "FastGen's engine")
    """
    if not is_installed(package):
        raise MissingPackage(package, job)
