"""The architecture of a model as numbers. The loader, the KV pools and the cost floors use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Scaling of RoPE frequencies: Llama 3's ("llama3") or position interpolation ("linear")."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a model, in elements unless stated otherwise."""

    family: Literal["opt", "llama"]
    """"llama" covers Llama 2 and 3, SmolLM2, TinyLlama, Mistral without sliding window, Qwen2 (qkv_bias)."""
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    """Maximum length of a sequence that the model supports, in tokens."""
    tied_embeddings: bool
    eos_token_ids: tuple[int, ...] = (2,)
    bos_token_id: int | None = None
    # llama family
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    qkv_bias: bool = False
    # opt family
    embed_dim: int | None = None
    """OPT-350m's word_embed_proj_dim, projected to hidden_size; None if they are the same."""
    pre_norm: bool = True
    """False for OPT-350m: LayerNorm after each residual, and no final LayerNorm."""
    activation: str = "silu"

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Return the bytes of one token's KV in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * element_bytes

    @property
    def rope_bytes(self) -> int:
        """Bytes of the table of rotary embeddings: head_dim float32 for each position. OPT has none."""
        return 0 if self.family == "opt" else 4 * self.max_position * self.head_dim

    @property
    def num_parameters(self) -> int:
        """Number of parameters, with norms and biases. Tied embeddings count once."""
        h, i = self.hidden_size, self.intermediate_size
        q, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        if self.family == "opt":
            e = self.embed_dim or h
            layer = 4 * h * h + 4 * h + 2 * h * i + i + h + 4 * h
            edge = self.vocab_size * e + (self.max_position + 2) * h
            edge += 2 * h * e if e != h else 0
            edge += 2 * h if self.pre_norm else 0
            return self.num_layers * layer + edge + (0 if self.tied_embeddings else self.vocab_size * e)
        layer = h * (q + 2 * kv) + q * h + 3 * h * i + 2 * h + (q + 2 * kv if self.qkv_bias else 0)
        edge = self.vocab_size * h * (1 if self.tied_embeddings else 2) + h
        return self.num_layers * layer + edge
