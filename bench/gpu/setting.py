"""On what the sections measure: the device, and the models, at their real or at a tiny scale."""

from __future__ import annotations

import gc
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch

from fgengine.config import EngineConfig
from fgengine.execution.create import create_runner
from fgengine.execution.runner import TorchRunner
from fgengine.model.catalog import shape_of
from fgengine.model.shape import ModelShape
from fgengine.physics import Ceilings
from fgengine.profiler import QUICK, Grid

SWAP_BYTES = 4 * 1024**3
"""Pinned for the sections that copy by hand: eight requests of 512 tokens of OPT-13B take 3.4 GB."""


@dataclass(frozen=True)
class Scale:
    """How large everything is."""

    models: tuple[str, ...]
    """OPT first: it is the one that is served."""
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prefills: tuple[int, ...]
    judged_batch: int
    judged_context: int
    judged_prefill: int
    """The points that the targets are about."""
    repeats: int
    swap_rounds: int
    """Times that decoding alone and decoding while swapping take turns."""
    swap_steps: int
    """Steps in a turn."""
    loop_steps: int
    max_batch_size: int
    device_blocks: int | None
    swap_bytes: int
    serving_swap_gib: float
    dataset: tuple[str, ...]
    """Options of the load that is served."""
    rates: tuple[float, ...] | None
    """None: around the capacity that the profile predicts."""
    grid: Grid
    least_load_seconds: float
    most_load_seconds: float


REAL = Scale(
    models=("opt-13b", "llama-3-8b"),
    batches=(1, 16, 64, 128),
    contexts=(512, 1024),
    prefills=(512, 2048),
    judged_batch=16,
    judged_context=512,
    judged_prefill=2048,
    repeats=20,
    swap_rounds=8,
    swap_steps=15,
    loop_steps=100,
    max_batch_size=128,
    device_blocks=None,
    swap_bytes=SWAP_BYTES,
    serving_swap_gib=32.0,
    dataset=("--dataset", "sharegpt-lengths"),
    rates=None,
    grid=QUICK,
    least_load_seconds=10.0,
    most_load_seconds=40.0,
)
TINY = Scale(
    models=("opt-tiny", "llama-tiny"),
    batches=(1, 4),
    contexts=(16, 40),
    prefills=(16, 48),
    judged_batch=4,
    judged_context=16,
    judged_prefill=48,
    repeats=3,
    swap_rounds=2,
    swap_steps=3,
    loop_steps=8,
    max_batch_size=4,
    device_blocks=64,
    swap_bytes=4 * 1024**2,
    serving_swap_gib=0.01,
    dataset=("--dataset", "synthetic", "--input-len", "5-20", "--output-len", "4-12"),
    rates=(10.0, 20.0, 30.0),
    grid=Grid((8, 16), (), (1, 2), (16,), (), repeats=1, seconds_per_point=0.1),
    least_load_seconds=0.5,
    most_load_seconds=0.5,
)
TINY_SHAPES = {
    "opt-tiny": ModelShape("opt", 512, 64, 256, 2, 2, 2, 32, 512, True, (2,), 2, activation="relu"),
    "llama-tiny": ModelShape("llama", 512, 64, 128, 2, 4, 2, 16, 512, False, (2,), 1),
}


@dataclass(eq=False)
class Setting:
    device: torch.device
    scale: Scale
    folder: Path
    """For what is measured along the way: profiles, run folders, servers' logs."""
    profile_every_step: bool = False
    """Print the kernels by time also where the target is met."""
    _runner: tuple[str, TorchRunner] | None = field(default=None, repr=False)
    _ceilings: dict[torch.dtype, Ceilings] = field(default_factory=dict, repr=False)

    @property
    def profile_path(self) -> Path:
        """Of the model that is served."""
        return self.folder / "profile.json"

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def config(self, model: str, **more: Any) -> EngineConfig:
        scale = self.scale
        settings: dict[str, Any] = {
            "model": self.path_of(model),
            "use_dummy_weights": True,
            "device": self.device.type,
            "max_batch_size": scale.max_batch_size,
            "num_device_blocks": scale.device_blocks,
            "swap_space": min(scale.swap_bytes, psutil.virtual_memory().available // 2) / 2**30,
        }
        return EngineConfig(**{**settings, **more})

    def path_of(self, model: str) -> str:
        """What ``--model`` takes: a name from the catalog, or of a tiny model a folder made here."""
        if model not in TINY_SHAPES:
            return model
        folder = self.folder / "models" / model
        if not (folder / "config.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(json.dumps(hf_config_of(TINY_SHAPES[model])))
        return str(folder)

    def runner(self, model: str) -> TorchRunner:
        """Loaded once for the sections that want it one after another; no two are held at a time."""
        if self._runner is not None and self._runner[0] == model:
            return self._runner[1]
        self.drop_runner()
        config = self.config(model)
        runner = create_runner(config, shape_of(config.model), None)
        runner.pool.normal_()  # not zeros, which cost a card less power; no denormals, which cost a CPU more
        self._runner = (model, runner)
        return runner

    def drop_runner(self) -> None:
        """Gives its memory back: two models, or a model and a server, do not fit."""
        if self._runner is not None:
            self._runner[1].close()
            self._runner = None
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()

    def ceilings(self, runner: TorchRunner) -> Ceilings:
        """Measured once for each dtype."""
        from fgengine.ceilings import measure_ceilings

        if runner.dtype not in self._ceilings:
            weights = runner.shape.num_parameters * runner.dtype.itemsize
            self._ceilings[runner.dtype] = measure_ceilings(runner.device, runner.dtype, weights)
        return self._ceilings[runner.dtype]

    def synchronize(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize(self.device)


def hf_config_of(shape: ModelShape) -> dict[str, Any]:
    """The config.json that describes a shape: what ``shape_from_config`` and other engines read."""
    common = {
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "max_position_embeddings": shape.max_position,
        "tie_word_embeddings": shape.tied_embeddings,
        "bos_token_id": shape.bos_token_id,
        "eos_token_id": shape.eos_token_ids[0],
    }
    if shape.family == "opt":
        return common | {
            "architectures": ["OPTForCausalLM"],
            "model_type": "opt",
            "torch_dtype": "float16",
            "ffn_dim": shape.intermediate_size,
            "word_embed_proj_dim": shape.embed_dim or shape.hidden_size,
            "do_layer_norm_before": shape.pre_norm,
            "activation_function": "relu",
            "dropout": 0.0,
            "pad_token_id": 1,
            "prefix": "</s>",
        }
    return common | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "bfloat16",
        "intermediate_size": shape.intermediate_size,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_theta": shape.rope_theta,
    }
