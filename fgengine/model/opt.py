"""The OPT family over a paged KV pool. opt-350m differs: post-norm layers and projected embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgengine.model.layers import Linear, parameter
from fgengine.model.shape import ModelShape
from fgengine.ops.batch import RaggedBatch
from fgengine.ops.reference import TorchOps

POSITION_OFFSET = 2
"""OPT's position table starts with two rows that no token uses."""
EPS = 1e-5


class LayerNorm(nn.Module):
    """The weight and bias of a LayerNorm, [size] each."""

    def __init__(self, size: int, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = parameter(size, device=device, dtype=dtype)
        self.bias = parameter(size, device=device, dtype=dtype)


class OptLayer(nn.Module):
    """The weights of one layer. ``qkv`` is one matrix for queries, keys and values."""

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        hidden = shape.hidden_size
        self.attention_norm = LayerNorm(hidden, device, dtype)
        self.qkv = Linear(hidden, 3 * hidden, True, device, dtype)
        self.out = Linear(hidden, hidden, True, device, dtype)
        self.mlp_norm = LayerNorm(hidden, device, dtype)
        self.up = Linear(hidden, shape.intermediate_size, True, device, dtype)
        self.down = Linear(shape.intermediate_size, hidden, True, device, dtype)


class Opt(nn.Module):
    """A model of the OPT family. ``ops`` computes its operations and can be replaced."""

    def __init__(self, shape: ModelShape, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.shape = shape
        self.ops = TorchOps()
        hidden, embed = shape.hidden_size, shape.embed_dim or shape.hidden_size
        positions = shape.max_position + POSITION_OFFSET
        self.embedding = parameter(shape.vocab_size, embed, device=device, dtype=dtype)
        self.positions = parameter(positions, hidden, device=device, dtype=dtype)
        projected = embed != hidden
        self.project_in = Linear(embed, hidden, False, device, dtype) if projected else None
        self.layers = nn.ModuleList(OptLayer(shape, device, dtype) for _ in range(shape.num_layers))
        self.final_norm = LayerNorm(hidden, device, dtype) if shape.pre_norm else None
        self.project_out = Linear(hidden, embed, False, device, dtype) if projected else None
        self.head = Linear(embed, shape.vocab_size, False, device, dtype)
        if shape.tied_embeddings:
            self.head.weight = self.embedding

    def forward(self, tokens: Tensor, batch: RaggedBatch, pool: Tensor, rows: Tensor | None = None) -> Tensor:
        """Compute T new tokens; arguments and result as in ``Llama.forward``."""
        ops = self.ops
        residual = ops.embed(tokens, self.embedding)
        if self.project_in is not None:
            residual = ops.linear(self.project_in, residual)
        residual = ops.add_positions(residual, self.positions[POSITION_OFFSET:], batch)
        change: Tensor | None = None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, OptLayer)
            kv = pool[:, index]
            if self.shape.pre_norm:
                x = self._norm(layer.attention_norm, change, residual)
                x = self._norm(layer.mlp_norm, self._attend(layer, x, kv, batch), residual)
                change = self._mlp(layer, x)
            else:
                change = self._attend(layer, residual, kv, batch)
                residual = self._norm(layer.attention_norm, change, residual)
                residual = self._norm(layer.mlp_norm, self._mlp(layer, residual), residual)
        if rows is not None:
            residual = ops.pick(residual, rows)
        if self.final_norm is not None:
            assert change is not None
            residual = self._norm(
                self.final_norm, change if rows is None else ops.pick(change, rows), residual
            )
        if self.project_out is not None:
            residual = ops.linear(self.project_out, residual)
        return ops.linear(self.head, residual)

    def _norm(self, norm: LayerNorm, change: Tensor | None, residual: Tensor) -> Tensor:
        """Add ``change`` to the residual in place, if given, and return the LayerNorm of the residual."""
        if change is None:
            return self.ops.layer_norm(residual, norm.weight, norm.bias, EPS)
        return self.ops.add_layer_norm(change, residual, norm.weight, norm.bias, EPS)

    def _attend(self, layer: OptLayer, x: Tensor, kv: Tensor, batch: RaggedBatch) -> Tensor:
        shape = self.shape
        qkv = self.ops.linear(layer.qkv, x)
        self.ops.write_kv(qkv, kv, batch)
        q = qkv[:, : shape.hidden_size].view(-1, shape.num_heads, shape.head_dim)
        return self.ops.linear(layer.out, self.ops.attention(q, kv, batch))

    def _mlp(self, layer: OptLayer, x: Tensor) -> Tensor:
        return self.ops.linear(layer.down, self.ops.linear_relu(layer.up, x))

    def places(self) -> dict[str, Tensor]:
        """Return the tensor to copy each checkpoint weight to, as ``Llama.places``."""
        hidden = self.shape.hidden_size
        at = "model.decoder."
        places = {
            at + "embed_tokens.weight": self.embedding.data,
            at + "embed_positions.weight": self.positions.data,
        }
        if not self.shape.tied_embeddings:
            places["lm_head.weight"] = self.head.weight.data
        if self.project_in is not None and self.project_out is not None:
            places[at + "project_in.weight"] = self.project_in.weight.data
            places[at + "project_out.weight"] = self.project_out.weight.data
        parts: list[tuple[str, nn.Module]] = []
        if self.final_norm is not None:
            parts.append((at + "final_layer_norm", self.final_norm))
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, OptLayer)
            here = f"{at}layers.{index}."
            parts += [
                (here + "self_attn_layer_norm", layer.attention_norm),
                (here + "self_attn.out_proj", layer.out),
                (here + "final_layer_norm", layer.mlp_norm),
                (here + "fc1", layer.up),
                (here + "fc2", layer.down),
            ]
            for kind, fused in layer.qkv.named_parameters():
                for name, part in zip("qkv", torch.split(fused.data, hidden), strict=True):
                    places[f"{here}self_attn.{name}_proj.{kind}"] = part
        for name, module in parts:
            places |= {f"{name}.{kind}": value.data for kind, value in module.named_parameters()}
        return places
