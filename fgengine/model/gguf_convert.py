"""Converts SmolLM's GGUF file to a Hugging Face folder: weights in bfloat16, tokenizer, chat template.

transformers' ``gguf_file=`` is not used, because its meaning changes between releases (newer ones leave the
weights packed). The weights equal bit for bit those of transformers' dequantization.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file

_LAYER_TENSORS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
_EDGE_TENSORS = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_CONTROL_TOKEN = 3
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}


def convert(source: Path, folder: Path) -> None:
    """Convert the GGUF file ``source`` into ``folder``.

    Writes model.safetensors, config.json, generation_config.json, tokenizer.json and tokenizer_config.json.
    Raises ValueError for a GGUF file of another architecture or tokenizer.
    """
    reader = GGUFReader(source)
    meta = {key: field.contents() for key, field in reader.fields.items()}
    kind = (meta["general.architecture"], meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"])
    if kind != ("llama", "gpt2", "smollm"):
        raise ValueError(f"{source.name}: a GGUF file of {kind} is not supported, only SmolLM's")
    heads = {"attn_q": meta["llama.attention.head_count"], "attn_k": meta["llama.attention.head_count_kv"]}
    tensors: dict[str, torch.Tensor] = {}
    for tensor in reader.tensors:
        weight = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        kind_of_tensor = tensor.name.removesuffix(".weight").rpartition(".")[2]
        if kind_of_tensor in heads:
            weight = _rotate_halves(weight, heads[kind_of_tensor])
        tensors[_name(tensor.name)] = weight.to(torch.bfloat16).contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", _config(meta, tied="lm_head.weight" not in tensors))
    ids = {f"{role}_token_id": meta[f"tokenizer.ggml.{long}_token_id"] for role, long in _ROLES.items()}
    _write(folder / "generation_config.json", {k: v for k, v in ids.items() if k != "unk_token_id"})
    _write_tokenizer(meta, folder)


def _name(gguf_name: str) -> str:
    stem = gguf_name.removesuffix(".weight")
    if stem in _EDGE_TENSORS:
        return f"{_EDGE_TENSORS[stem]}.weight"
    block, layer, part = stem.split(".")
    if block != "blk" or part not in _LAYER_TENSORS:
        raise ValueError(f"tensor {gguf_name} does not belong to a model of the llama family")
    return f"model.layers.{int(layer)}.{_LAYER_TENSORS[part]}.weight"


def _rotate_halves(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of a query or key weight [heads * head_dim, hidden] from GGUF to Hugging Face.

    Rotary embedding pairs the elements of the two halves of a head. GGUF interleaves the halves; Hugging Face
    stores one after the other.
    """
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)


def _config(meta: dict[str, Any], tied: bool) -> dict[str, Any]:
    hidden, heads = meta["llama.embedding_length"], meta["llama.attention.head_count"]
    theta = meta["llama.rope.freq_base"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": meta["llama.vocab_size"],
        "hidden_size": hidden,
        "intermediate_size": meta["llama.feed_forward_length"],
        "num_hidden_layers": meta["llama.block_count"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "max_position_embeddings": meta["llama.context_length"],
        "rms_norm_eps": float(f"{meta['llama.attention.layer_norm_rms_epsilon']:.6g}"),  # stored as float32
        "rope_theta": theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": meta["tokenizer.ggml.bos_token_id"],
        "eos_token_id": meta["tokenizer.ggml.eos_token_id"],
        "pad_token_id": meta["tokenizer.ggml.padding_token_id"],
        "torch_dtype": "bfloat16",
    }


def _write_tokenizer(meta: dict[str, Any], folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = meta["tokenizer.ggml.tokens"]
    merges = [(left, right) for left, right in (m.split(" ") for m in meta["tokenizer.ggml.merges"])]
    vocab = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    split = [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = meta["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    roles = {
        f"{role}_token": tokens[meta[f"tokenizer.ggml.{long}_token_id"]] for role, long in _ROLES.items()
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **roles,
        "clean_up_tokenization_spaces": False,
        "model_max_length": meta["llama.context_length"],
        "chat_template": meta["tokenizer.chat_template"],
    }
    _write(folder / "tokenizer_config.json", settings)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
