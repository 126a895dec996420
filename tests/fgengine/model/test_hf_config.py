"""Conversion of config.json to ModelShape: files from transformers, both RoPE styles, and every refusal."""

from typing import Any

import pytest
from transformers import LlamaConfig, MistralConfig, OPTConfig, Qwen2Config

from fgengine.model.catalog import CATALOG
from fgengine.model.hf_config import config_of, shape_from_config
from fgengine.model.shape import RopeScaling

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 128,
    "hidden_size": 64,
    "ffn_dim": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
}


def test_the_config_of_every_shape_describes_it() -> None:
    for entry in CATALOG.values():
        assert shape_from_config(config_of(entry.shape)) == entry.shape
    scaled = shape_from_config(LLAMA | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}})
    assert shape_from_config(config_of(scaled)) == scaled


def test_llama_config() -> None:
    shape = shape_from_config(LLAMA)
    assert (shape.family, shape.num_kv_heads, shape.head_dim, shape.intermediate_size) == ("llama", 2, 16, 96)
    assert shape.tied_embeddings
    assert not shape.qkv_bias
    assert shape.rope_theta == 10000.0
    assert shape.rope_scaling is None
    assert shape.eos_token_ids == (2,)
    assert shape.bos_token_id == 1
    assert shape_from_config(LLAMA | {"head_dim": 32}).head_dim == 32


def test_opt_config() -> None:
    shape = shape_from_config(OPT)
    assert (shape.family, shape.num_kv_heads, shape.activation) == ("opt", 4, "relu")
    assert shape.pre_norm
    assert shape.tied_embeddings
    assert shape.embed_dim is None
    small = shape_from_config(OPT | {"word_embed_proj_dim": 32, "do_layer_norm_before": False})
    assert small.embed_dim == 32
    assert not small.pre_norm


@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
def test_llama3_rope_in_both_styles(style: str) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if style == "rope_parameters":
        config = LLAMA | {"rope_parameters": scaling | {"rope_theta": 5e5}}
    else:
        config = LLAMA | {"rope_theta": 5e5, "rope_scaling": scaling}
    shape = shape_from_config(config)
    assert shape.rope_theta == 5e5
    assert shape.rope_scaling == RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)


def test_linear_rope_in_the_oldest_style() -> None:
    shape = shape_from_config(LLAMA | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert shape.rope_scaling == RopeScaling("linear", 2.0)


@pytest.mark.parametrize(
    "made", [LlamaConfig(), Qwen2Config(), OPTConfig(), MistralConfig(sliding_window=None, rms_norm_eps=1e-5)]
)
def test_configs_written_by_transformers_are_read(made: Any) -> None:
    shape = shape_from_config(made.to_dict())
    assert shape.hidden_size == made.hidden_size
    assert shape.num_layers == made.num_hidden_layers
    assert shape.qkv_bias is (made.model_type == "qwen2")
    assert shape.tied_embeddings is made.tie_word_embeddings


def test_end_of_sequence_ids_of_both_files_are_combined() -> None:
    config = LLAMA | {"eos_token_id": [7, 8]}
    assert shape_from_config(config, {"eos_token_id": 9}).eos_token_ids == (7, 8, 9)
    assert shape_from_config(config, {"eos_token_id": [8, 7]}).eos_token_ids == (7, 8)
    assert shape_from_config(LLAMA | {"eos_token_id": None}).eos_token_ids == ()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "gpt2"}, "'gpt2' is not supported; supported are llama"),
        (LLAMA | {"attention_bias": True}, "attention_bias"),
        (LLAMA | {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA | {"num_key_value_heads": 3}, "multiple"),
        (LLAMA | {"head_dim": 7}, "even"),
        (LLAMA | {"vocab_size": 0}, "vocab_size"),
        (LLAMA | {"hidden_size": "64"}, "hidden_size"),
        (LLAMA | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "'yarn'"),
        (LLAMA | {"partial_rotary_factor": 0.5}, "0.5"),
        (LLAMA | {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        (LLAMA | {"model_type": "mistral", "sliding_window": 64}, "sliding window"),
        (OPT | {"activation_function": "gelu"}, "activation_function"),
        (OPT | {"enable_bias": False}, "enable_bias"),
        (OPT | {"num_attention_heads": 5}, "multiple"),
    ],
)
def test_unsupported_and_invalid_configs_are_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        shape_from_config(config)
