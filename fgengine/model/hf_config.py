"""Converts a Hugging Face config.json to a ModelShape, or explains why it cannot; and a shape to a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

from fgengine.model.shape import ModelShape, RopeScaling

SUPPORTED_FAMILIES = ("llama", "mistral (without sliding window)", "qwen2", "opt")
"""The model families that the engine supports, by their ``model_type``."""

_LIMIT = 2**31
Config = Mapping[str, Any]


def shape_from_config(config: Config, generation: Config | None = None) -> ModelShape:
    """Return the shape that a ``config.json`` describes.

    Args:
        config: the parsed config.json.
        generation: the parsed generation_config.json, if there is one: its end-of-sequence ids are added.

    Raises:
        ValueError: the family or a setting of the config is not supported, or a number is missing or out of
            range.
    """
    kind = config.get("model_type")
    if config.get("quantization_config"):
        raise ValueError("quantized checkpoints are not supported: use the float16, bfloat16 or float32 one")
    if kind in ("llama", "mistral", "qwen2"):
        return _llama(kind, config, generation)
    if kind == "opt":
        return _opt(config, generation)
    raise ValueError(f"model_type {kind!r} is not supported; supported are {', '.join(SUPPORTED_FAMILIES)}")


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


def _llama(kind: str, config: Config, generation: Config | None) -> ModelShape:
    _only(config, "hidden_act", "silu", default="silu")
    _only(config, "mlp_bias", False, default=False)
    _only(config, "attention_bias", False, default=False)
    max_position = _size(config, "max_position_embeddings")
    window = config.get("sliding_window") if config.get("use_sliding_window", kind == "mistral") else None
    if window is not None and window < max_position:
        raise ValueError(
            f"attention over a sliding window ({window} of {max_position} tokens) is not supported; "
            f"supported are {', '.join(SUPPORTED_FAMILIES)}"
        )
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    theta, scaling = _rope(config)
    return _checked(
        ModelShape(
            family="llama",
            vocab_size=_size(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_size(config, "intermediate_size"),
            num_layers=_size(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=_size(config, "num_key_value_heads", default=heads),
            head_dim=_size(config, "head_dim", default=hidden // heads),
            max_position=max_position,
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            eos_token_ids=_eos(config, generation),
            bos_token_id=_bos(config),
            rms_norm_eps=_number(config, "rms_norm_eps", default=1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=kind == "qwen2",
        )
    )


def _opt(config: Config, generation: Config | None) -> ModelShape:
    _only(config, "activation_function", "relu", default="relu")
    _only(config, "enable_bias", True, default=True)
    _only(config, "layer_norm_elementwise_affine", True, default=True)
    _only(config, "_remove_final_layer_norm", False, default=False)
    heads = _size(config, "num_attention_heads")
    hidden = _size(config, "hidden_size")
    embed = _size(config, "word_embed_proj_dim", default=hidden)
    if hidden % heads:
        raise ValueError(f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    return _checked(
        ModelShape(
            family="opt",
            vocab_size=_size(config, "vocab_size"),
            hidden_size=hidden,
            intermediate_size=_size(config, "ffn_dim"),
            num_layers=_size(config, "num_hidden_layers"),
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            max_position=_size(config, "max_position_embeddings"),
            tied_embeddings=bool(config.get("tie_word_embeddings", True)),
            eos_token_ids=_eos(config, generation),
            bos_token_id=_bos(config),
            embed_dim=embed if embed != hidden else None,
            pre_norm=bool(config.get("do_layer_norm_before", True)),
            activation="relu",
        )
    )


def _checked(shape: ModelShape) -> ModelShape:
    if shape.num_heads % shape.num_kv_heads:
        raise ValueError(
            f"num_attention_heads {shape.num_heads} is not a multiple of "
            f"num_key_value_heads {shape.num_kv_heads}"
        )
    if shape.head_dim % 2:
        raise ValueError(f"head_dim must be even, not {shape.head_dim}")
    return shape


def _rope(config: Config) -> tuple[float, RopeScaling | None]:
    """Read base and scaling from ``rope_theta``/``rope_scaling`` or transformers 5's ``rope_parameters``."""
    rope: Config = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if partial != 1.0 or kind not in ("default", "linear", "llama3"):
        raise ValueError(
            f"rotary embedding of type {kind!r} over {partial:g} of each head is not supported; "
            "supported are 'default', 'linear' and 'llama3' over the entire head"
        )
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind="linear", factor=_number(rope, "factor"))
    return theta, RopeScaling(
        kind="llama3",
        factor=_number(rope, "factor"),
        low_freq_factor=_number(rope, "low_freq_factor"),
        high_freq_factor=_number(rope, "high_freq_factor"),
        original_max_position=_size(rope, "original_max_position_embeddings"),
    )


def _eos(config: Config, generation: Config | None) -> tuple[int, ...]:
    ids: list[int] = []
    for source in (config, generation or {}):
        value = source.get("eos_token_id")
        ids += [value] if _is_int(value) else [i for i in value or () if _is_int(i)]
    return tuple(dict.fromkeys(ids))


def _bos(config: Config) -> int | None:
    value = config.get("bos_token_id")
    return value if _is_int(value) else None


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _only(config: Config, key: str, allowed: object, default: object) -> None:
    if (value := config.get(key, default)) != allowed:
        raise ValueError(f"{key} = {value!r} is not supported; it must be {allowed!r}")


def _size(config: Config, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not _is_int(value) or not 0 < value < _LIMIT:
        raise ValueError(f"{key} must be a whole number above 0, not {value!r}")
    return value


def _number(config: Config, key: str, default: float | None = None) -> float:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0.0 < value < float("inf"):
        raise ValueError(f"{key} must be a number above 0, not {value!r}")
    return float(value)
