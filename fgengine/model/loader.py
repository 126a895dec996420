"""Creates a model with its weights, from the safetensors of a folder or as seeded dummy weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgengine.model.layers import Linear
from fgengine.model.llama import Llama
from fgengine.model.opt import Opt
from fgengine.model.shape import ModelShape

Model = Llama | Opt
DUMMY_STD = 0.02
"""Standard deviation of dummy weights."""


def load(
    shape: ModelShape, folder: Path | None, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Model:
    """Create the model on the device and fill its weights.

    Args:
        folder: a Hugging Face folder with safetensors; None: dummy weights, which are the same for the same
            seed, shape, dtype and type of device.

    Raises:
        ValueError: the folder holds no safetensors, or not exactly the tensors of this shape.
    """
    model = (Opt if shape.family == "opt" else Llama)(shape, device, dtype)
    if folder is None:
        _fill_with_dummies(model, device, seed)
    else:
        _fill_from(model, folder)
    return model.eval()


def pack_linears(model: Model) -> None:
    """Pack every linear layer for the CPU; see ``Linear.pack``."""
    for module in model.modules():
        if isinstance(module, Linear):
            module.pack(keep_weight=module.weight is model.embedding)


def _fill_with_dummies(model: Model, device: torch.device, seed: int) -> None:
    generator = torch.Generator(device).manual_seed(seed)
    for name, value in model.named_parameters():
        if "norm" in name:
            value.data.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            value.data.normal_(0.0, DUMMY_STD, generator=generator)


def _fill_from(model: Model, folder: Path) -> None:
    places = model.places()
    missing = set(places)
    unexpected: list[str] = []
    for name, value in _tensors(folder):
        name = name if name in places else f"model.{name}"  # some OPT checkpoints omit the prefix
        place = places.get(name)
        if place is None:
            # Files may contain a copy of a tied head, and old files the RoPE frequencies.
            if not name.endswith(("lm_head.weight", "rotary_emb.inv_freq")):
                unexpected.append(name.removeprefix("model."))
            continue
        if place.shape != value.shape:
            raise ValueError(
                f"{folder}: {name} is {list(value.shape)}, but the model's shape needs {list(place.shape)}"
            )
        place.copy_(value)
        missing.discard(name)
    for kind, names in (("are missing", sorted(missing)), ("are not this model's", sorted(unexpected))):
        if names:
            listed = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            raise ValueError(f"{folder}: {len(names)} tensors {kind}: {listed}")


def _tensors(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) for every tensor in the folder, one at a time."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        files = [folder / Path(shard).name for shard in shards]
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no safetensors file: convert the checkpoint to safetensors first")
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:  # noqa: PERF203 (once per file, not per tensor)
            raise ValueError(f"{file} cannot be read ({error}): download it again") from None
