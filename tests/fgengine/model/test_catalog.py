"""The catalog of models: published shapes, names and error messages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fgengine.model.catalog import CATALOG, ModelError, shape_of
from fgengine.model.hf_config import shape_from_config

PUBLISHED_PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "opt-125m": 125_239_296,
    "opt-350m": 331_196_416,
    "opt-1.3b": 1_315_758_080,
    "opt-6.7b": 6_658_473_984,
    "opt-13b": 12_853_473_280,
    "opt-30b": 29_974_540_288,
    "opt-66b": 65_719_701_504,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "tinyllama-1.1b": 1_100_048_384,
    "qwen2.5-0.5b": 494_032_768,
}

PUBLISHED_CONFIGS: dict[str, dict[str, Any]] = {
    "smollm2-135m": {
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "max_position_embeddings": 8192,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
    },
    "opt-350m": {
        "model_type": "opt",
        "activation_function": "relu",
        "bos_token_id": 2,
        "eos_token_id": 2,
        "do_layer_norm_before": False,
        "ffn_dim": 4096,
        "hidden_size": 1024,
        "max_position_embeddings": 2048,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "vocab_size": 50272,
        "word_embed_proj_dim": 512,
    },
    "llama-3-8b": {
        "model_type": "llama",
        "bos_token_id": 128000,
        "eos_token_id": 128001,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 8192,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2",
        "bos_token_id": 151643,
        "eos_token_id": 151643,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "max_position_embeddings": 32768,
        "num_attention_heads": 14,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "sliding_window": 32768,
        "use_sliding_window": False,
        "tie_word_embeddings": True,
        "vocab_size": 151936,
    },
}


def test_every_model_has_the_published_number_of_parameters() -> None:
    assert {name: entry.shape.num_parameters for name, entry in CATALOG.items()} == PUBLISHED_PARAMETERS


@pytest.mark.parametrize("name", PUBLISHED_CONFIGS)
def test_shapes_are_those_of_the_published_configs(name: str) -> None:
    assert shape_from_config(PUBLISHED_CONFIGS[name]) == CATALOG[name].shape


def test_a_folder_gives_its_own_shape_with_the_end_tokens_of_both_files(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED_CONFIGS["llama-3-8b"]))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [128001, 128009]}))
    shape = shape_of(str(tmp_path))
    assert shape.num_kv_heads == 8
    assert shape.eos_token_ids == (128001, 128009)


@pytest.mark.parametrize(
    ("asked", "meant"),
    [("opt13b", "opt-13b"), ("facebook/opt-6.7b", "opt-6.7b"), ("SmolLM2-135M-Instruct", "smollm2-135m")],
)
def test_an_unknown_name_gets_the_nearest_one(asked: str, meant: str) -> None:
    with pytest.raises(ModelError, match=f'did you mean "{meant}"') as caught:
        shape_of(asked)
    assert "llama-3-8b" in str(caught.value)
    assert "qwen2" in str(caught.value)


def test_names_are_found_in_any_case() -> None:
    assert shape_of("OPT-13B") is CATALOG["opt-13b"].shape


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "holds no config.json"),
        ("{", "not valid JSON"),
        ("[]", "must hold a JSON object"),
        ('{"model_type": "mamba"}', "'mamba' is not supported; supported are llama"),
        ('{"x": "' + "y" * 2**20 + '"}', "larger than"),
    ],
)
def test_an_unusable_folder_is_refused(tmp_path: Path, config: str | None, message: str) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ModelError, match=message):
        shape_of(str(tmp_path))


def test_the_catalog_and_the_store_import_nothing_heavy() -> None:
    code = "import sys, fgengine.model.store; print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
