"""The Llama family over a paged KV pool: Llama 2 and 3, SmolLM2, TinyLlama, Mistral, Qwen2."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgengine.model.layers import Linear, parameter, rope_table
from fgengine.model.shape import ModelShape
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps


class LlamaLayer(nn.Module):
    """The weights of one layer: attention and SwiGLU.

    ``qkv`` is one matrix for queries, keys and values; ``gate_up`` is one for gate and up.
    """

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        hidden, inner = shape.hidden_size, shape.intermediate_size
        attended = shape.num_heads * shape.head_dim
        stored = shape.num_kv_heads * shape.head_dim
        self.attention_norm = parameter(hidden, device=device, dtype=dtype)
        self.qkv = Linear(hidden, attended + 2 * stored, shape.qkv_bias, device, dtype)
        self.out = Linear(attended, hidden, False, device, dtype)
        self.mlp_norm = parameter(hidden, device=device, dtype=dtype)
        self.gate_up = Linear(hidden, 2 * inner, False, device, dtype)
        self.down = Linear(inner, hidden, False, device, dtype)


class Llama(nn.Module):
    """A model of the Llama family. ``ops`` computes its operations and can be replaced."""

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.ops = TorchOps()
        self.embedding = parameter(shape.vocab_size, shape.hidden_size, device=device, dtype=dtype)
        self.layers = nn.ModuleList(LlamaLayer(shape, device, dtype) for _ in range(shape.num_layers))
        self.final_norm = parameter(shape.hidden_size, device=device, dtype=dtype)
        self.head = Linear(shape.hidden_size, shape.vocab_size, False, device, dtype)
        if shape.tied_embeddings:
            self.head.weight = self.embedding
        self.rope = rope_table(shape, device)

    def forward(self, tokens: Tensor, batch: RaggedBatch, pool: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute T new tokens, store their keys and values in the pool, and return logits.

        Args:
            tokens: [T] int64.
            pool: [num_blocks, num_layers, 2, num_kv_heads, block_size, head_dim] in the model's dtype.
            rows: [R] int64, the rows of ``tokens`` to compute logits for; None: all.

        Returns:
            logits [R, vocab_size] (or [T, vocab_size]) in the model's dtype.
        """
        shape, ops, eps = self.shape, self.ops, self.shape.rms_norm_eps
        queries = shape.num_heads * shape.head_dim
        residual = ops.embed(tokens, self.embedding)
        change: Tensor | None = None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, LlamaLayer)
            kv = pool[:, index]
            if change is None:
                x = ops.rms_norm(residual, layer.attention_norm, eps)
            else:
                x = ops.add_rms_norm(change, residual, layer.attention_norm, eps)
            qkv = ops.linear(layer.qkv, x)
            ops.write_kv(qkv, kv, batch, self.rope)
            q = qkv[:, :queries].view(-1, shape.num_heads, shape.head_dim)
            x = ops.linear(layer.out, ops.attention(q, kv, batch))
            x = ops.add_rms_norm(x, residual, layer.mlp_norm, eps)
            change = ops.linear(layer.down, ops.silu_mul(ops.linear(layer.gate_up, x)))
        assert change is not None
        if rows is not None:
            change, residual = ops.pick(change, rows), ops.pick(residual, rows)
        return ops.linear(self.head, ops.add_rms_norm(change, residual, self.final_norm, eps))

    def places(self) -> dict[str, Tensor]:
        """Return, by the name in a Hugging Face checkpoint, the tensor to copy each weight to.

        Many are views of a part of a fused weight.
        """
        shape = self.shape
        queries, stored = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
        places = {"model.embed_tokens.weight": self.embedding.data, "model.norm.weight": self.final_norm.data}
        if not shape.tied_embeddings:
            places["lm_head.weight"] = self.head.weight.data
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, LlamaLayer)
            at = f"model.layers.{index}."
            places[at + "input_layernorm.weight"] = layer.attention_norm.data
            places[at + "post_attention_layernorm.weight"] = layer.mlp_norm.data
            places[at + "self_attn.o_proj.weight"] = layer.out.weight.data
            places[at + "mlp.down_proj.weight"] = layer.down.weight.data
            gate, up = torch.split(layer.gate_up.weight.data, shape.intermediate_size)
            places[at + "mlp.gate_proj.weight"], places[at + "mlp.up_proj.weight"] = gate, up
            for kind, fused in (("weight", layer.qkv.weight), ("bias", layer.qkv.bias)):
                if fused is not None:
                    parts = torch.split(fused.data, [queries, stored, stored])
                    for name, part in zip("qkv", parts, strict=True):
                        places[f"{at}self_attn.{name}_proj.{kind}"] = part
        return places
