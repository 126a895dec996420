"""Converts a Hugging Face config.json to a ModelShape, or explains why it cannot; and a shape to a config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fgengine.model.files import ModelError, converted, wrong
from fgengine.model.shape import ModelShape, RopeScaling

SUPPORTED_FAMILIES = ("llama", "mistral (without sliding window)", "qwen2", "opt")
"""The model families that the engine supports, by their ``model_type``."""
MAX_VOCAB_SIZE = 2**22
"""Upper bound of a vocabulary, and so of token ids. The largest known ones have a million entries."""
MAX_PARAMETERS = 10**13
"""Upper bound of the number of parameters. The largest known models have a tenth of that."""

_DTYPES = ("float16", "bfloat16", "float32", "float64", "auto")
Config = Mapping[str, Any]

# The bounds are several times those of the largest known models. What is above them is a damaged file, and is
# refused before anything as large is made.
_Size = Annotated[int, Meta(ge=1, le=2**20)]
_Layers = Annotated[int, Meta(ge=1, le=2**12)]
_Heads = Annotated[int, Meta(ge=1, le=2**12)]
_Positions = Annotated[int, Meta(ge=1, le=2**24)]
_Vocabulary = Annotated[int, Meta(ge=1, le=MAX_VOCAB_SIZE)]
_Token = Annotated[int, Meta(ge=0, lt=MAX_VOCAB_SIZE)]
_Base = Annotated[float, Meta(ge=1.0, le=1e15)]
_Factor = Annotated[float, Meta(ge=1e-3, le=1e6)]
_Share = Annotated[float, Meta(gt=0.0, le=1.0)]


class _Rope(msgspec.Struct):
    """``rope_scaling``, or transformers 5's ``rope_parameters``."""

    rope_theta: _Base | None = None
    rope_type: str | None = None
    type: str | None = None
    """Older name of ``rope_type``."""
    partial_rotary_factor: _Share | None = None
    factor: _Factor | None = None
    low_freq_factor: _Factor | None = None
    high_freq_factor: _Factor | None = None
    original_max_position_embeddings: _Positions | None = None
    full_attention: Any = None
    """Set if layers differ in their rotary embedding, which is not supported."""
    sliding_attention: Any = None


class _Common(msgspec.Struct, kw_only=True):
    """The fields of all families. A field may be null where transformers has a default for it."""

    vocab_size: _Vocabulary
    hidden_size: _Size
    num_hidden_layers: _Layers
    num_attention_heads: _Heads
    max_position_embeddings: _Positions
    tie_word_embeddings: bool | None = None
    eos_token_id: _Token | list[_Token] | None = None
    bos_token_id: _Token | None = None
    torch_dtype: str | None = None
    dtype: str | None = None
    """transformers 5's name of ``torch_dtype``. Both are only checked: ``--dtype`` sets the format."""


class _Llama(_Common, kw_only=True):
    intermediate_size: _Size
    num_key_value_heads: _Heads | None = None
    head_dim: _Size | None = None
    rms_norm_eps: Annotated[float, Meta(ge=1e-12, le=1.0)] | None = None
    hidden_act: str | None = None
    mlp_bias: bool | None = None
    attention_bias: bool | None = None
    sliding_window: _Positions | None = None
    use_sliding_window: bool | None = None
    rope_theta: _Base | None = None
    rope_scaling: _Rope | None = None
    rope_parameters: _Rope | None = None
    partial_rotary_factor: _Share | None = None


class _Opt(_Common, kw_only=True):
    ffn_dim: _Size
    word_embed_proj_dim: _Size | None = None
    do_layer_norm_before: bool | None = None
    activation_function: str | None = None
    enable_bias: bool | None = None
    layer_norm_elementwise_affine: bool | None = None
    remove_final_layer_norm: bool | None = msgspec.field(default=None, name="_remove_final_layer_norm")


class _Generation(msgspec.Struct):
    """The part of ``generation_config.json`` that is used."""

    eos_token_id: _Token | list[_Token] | None = None


def shape_from_config(
    config: Config, generation: Config | None = None, folder: Path | None = None
) -> ModelShape:
    """Return the shape that a ``config.json`` describes.

    Args:
        config: the parsed config.json.
        generation: the parsed generation_config.json, if there is one: its end-of-sequence ids are added.
        folder: the folder of both files, for messages.

    Raises:
        ModelError: the family or a setting of the config is not supported; or a field is missing, has a wrong
            type or is out of range. The message names the file and the field.
    """
    path = (folder or Path()) / "config.json"
    kind = config.get("model_type")
    if config.get("quantization_config"):
        raise ModelError(
            f"{path}: quantization_config is set, but quantized checkpoints are not supported: use the "
            "float16, bfloat16 or float32 one"
        )
    if kind in ("llama", "mistral", "qwen2"):
        shape = _llama(kind, converted(config, _Llama, path), path)
    elif kind == "opt":
        shape = _opt(converted(config, _Opt, path), path)
    else:
        raise ModelError(
            f"{path}: model_type {str(kind)[:60]!r} is not supported; supported are "
            f"{', '.join(SUPPORTED_FAMILIES)}"
        )
    if generation is None:
        return shape
    path = path.with_name("generation_config.json")
    more = _end_ids(converted(generation, _Generation, path).eos_token_id, shape.vocab_size, path)
    return replace(shape, eos_token_ids=tuple(dict.fromkeys(shape.eos_token_ids + more)))


def config_of(shape: ModelShape) -> dict[str, Any]:
    """Return the ``config.json`` of a shape, for programs that load dummy weights from a folder.

    ``shape_from_config`` returns the same shape for it.
    """
    common: dict[str, Any] = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "max_position_embeddings": shape.max_position,
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": list(shape.eos_token_ids) if len(shape.eos_token_ids) > 1 else shape.eos_token_ids[0],
        "torch_dtype": "float16" if shape.family == "opt" else "bfloat16",
    }
    if shape.family == "opt":
        return common | {
            "model_type": "opt",
            "architectures": ["OPTForCausalLM"],
            "ffn_dim": shape.intermediate_size,
            "word_embed_proj_dim": shape.embed_dim or shape.hidden_size,
            "do_layer_norm_before": shape.pre_norm,
            "activation_function": shape.activation,
        }
    kind, name = ("qwen2", "Qwen2ForCausalLM") if shape.qkv_bias else ("llama", "LlamaForCausalLM")
    scaling = shape.rope_scaling
    rope = {} if scaling is None else {"rope_scaling": {"rope_type": scaling.kind, "factor": scaling.factor}}
    if scaling is not None and scaling.kind == "llama3":
        rope["rope_scaling"] |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_position,
        }
    return common | {
        "model_type": kind,
        "architectures": [name],
        "hidden_act": "silu",
        "intermediate_size": shape.intermediate_size,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
        **rope,
    }


def _llama(kind: str, config: _Llama, path: Path) -> ModelShape:
    _only(path, "hidden_act", config.hidden_act, "silu")
    _only(path, "mlp_bias", config.mlp_bias, False)
    _only(path, "attention_bias", config.attention_bias, False)
    slides = config.use_sliding_window
    window = config.sliding_window if (kind == "mistral" if slides is None else slides) else None
    if window is not None and window < config.max_position_embeddings:
        raise ModelError(
            f"{path}: sliding_window: attention over a sliding window ({window} of "
            f"{config.max_position_embeddings} tokens) is not supported; supported are "
            f"{', '.join(SUPPORTED_FAMILIES)}"
        )
    heads = config.num_attention_heads
    kv_heads = config.num_key_value_heads or heads
    _multiple(path, "num_attention_heads", heads, "num_key_value_heads", kv_heads)
    if config.head_dim is None:
        _multiple(path, "hidden_size", config.hidden_size, "num_attention_heads", heads)
    theta, scaling = _rope(config, path)
    return _checked(
        ModelShape(
            family="llama",
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=config.head_dim or config.hidden_size // heads,
            max_position=config.max_position_embeddings,
            tied_embeddings=bool(config.tie_word_embeddings),
            eos_token_ids=_end_ids(config.eos_token_id, config.vocab_size, path),
            bos_token_id=config.bos_token_id,
            rms_norm_eps=config.rms_norm_eps or 1e-6,
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=kind == "qwen2",
        ),
        config,
        path,
    )


def _opt(config: _Opt, path: Path) -> ModelShape:
    _only(path, "activation_function", config.activation_function, "relu")
    _only(path, "enable_bias", config.enable_bias, True)
    _only(path, "layer_norm_elementwise_affine", config.layer_norm_elementwise_affine, True)
    _only(path, "_remove_final_layer_norm", config.remove_final_layer_norm, False)
    heads, hidden = config.num_attention_heads, config.hidden_size
    _multiple(path, "hidden_size", hidden, "num_attention_heads", heads)
    embed = config.word_embed_proj_dim
    return _checked(
        ModelShape(
            family="opt",
            vocab_size=config.vocab_size,
            hidden_size=hidden,
            intermediate_size=config.ffn_dim,
            num_layers=config.num_hidden_layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            max_position=config.max_position_embeddings,
            tied_embeddings=config.tie_word_embeddings is not False,
            eos_token_ids=_end_ids(config.eos_token_id, config.vocab_size, path),
            bos_token_id=config.bos_token_id,
            embed_dim=embed if embed != hidden else None,
            pre_norm=config.do_layer_norm_before is not False,
            activation="relu",
        ),
        config,
        path,
    )


def _checked(shape: ModelShape, config: _Common, path: Path) -> ModelShape:
    """Return the shape if it is possible."""
    if shape.head_dim % 2:
        raise wrong(path, "head_dim", shape.head_dim, "be even")
    if shape.bos_token_id is not None and shape.bos_token_id >= shape.vocab_size:
        raise _outside(path, "bos_token_id", shape.bos_token_id, shape.vocab_size)
    for field in ("torch_dtype", "dtype"):
        dtype: str | None = getattr(config, field)
        if dtype is not None and dtype.removeprefix("torch.") not in _DTYPES:
            raise wrong(path, field, dtype, f"be one of {', '.join(_DTYPES)}")
    if shape.num_parameters > MAX_PARAMETERS:
        raise ModelError(
            f"{path}: hidden_size, num_hidden_layers and the other sizes make a model of "
            f"{shape.num_parameters:.1e} parameters, more than any that exists ({MAX_PARAMETERS:.0e} at most)"
        )
    return shape


def _rope(config: _Llama, path: Path) -> tuple[float, RopeScaling | None]:
    """Return base and scaling. ``rope_parameters`` counts before ``rope_scaling`` and ``rope_theta``."""
    field = "rope_parameters" if config.rope_parameters is not None else "rope_scaling"
    rope = config.rope_parameters or config.rope_scaling or _Rope()
    theta = rope.rope_theta or config.rope_theta or 10000.0
    if rope.full_attention is not None or rope.sliding_attention is not None:
        raise ModelError(f"{path}: {field}: layers that differ in their rotary embedding are not supported")
    partial = rope.partial_rotary_factor or config.partial_rotary_factor or 1.0
    kind = rope.rope_type or rope.type or "default"
    if partial != 1.0 or kind not in ("default", "linear", "llama3"):
        raise ModelError(
            f"{path}: {field}: rotary embedding of type {kind[:60]!r} over {partial:g} of each head is not "
            "supported; supported are 'default', 'linear' and 'llama3' over the entire head"
        )

    def needed(name: str) -> Any:
        if (value := getattr(rope, name)) is None:
            raise ModelError(f"{path}: {field}.{name} is missing: type {kind!r} needs it")
        return value

    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=needed("factor"))
    low, high = needed("low_freq_factor"), needed("high_freq_factor")
    if high <= low:
        raise wrong(path, f"{field}.high_freq_factor", high, f"be above low_freq_factor, which is {low:g}")
    original = needed("original_max_position_embeddings")
    return theta, RopeScaling("llama3", needed("factor"), low, high, original)


def _end_ids(value: int | list[int] | None, vocab_size: int, path: Path) -> tuple[int, ...]:
    """Return the distinct end-of-sequence ids. Raises ModelError for one that the model cannot generate."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for token in ids:
        if token >= vocab_size:
            raise _outside(path, "eos_token_id", token, vocab_size)
    return tuple(dict.fromkeys(ids))


def _outside(path: Path, field: str, token: int, vocab_size: int) -> ModelError:
    return wrong(path, field, token, f"be below vocab_size, which is {vocab_size}")


def _only(path: Path, field: str, value: object, allowed: object) -> None:
    if value is not None and value != allowed:
        raise ModelError(f"{path}: {field} = {value!r:.60} is not supported; it must be {allowed!r}")


def _multiple(path: Path, field: str, value: int, of: str, divisor: int) -> None:
    if value % divisor:
        raise ModelError(f"{path}: {field} {value} is not a multiple of {of} {divisor}")
