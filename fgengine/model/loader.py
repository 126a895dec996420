"""Creates a model with its weights, from the safetensors of a folder or as seeded dummy weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fgengine.model.files import ModelError, exists, is_plain_name, one_line, read_json, wrong
from fgengine.model.layers import Linear
from fgengine.model.llama import Llama
from fgengine.model.opt import Opt
from fgengine.model.shape import ModelShape

Model = Llama | Opt
DUMMY_STD = 0.02
"""Standard deviation of dummy weights."""
MAX_INDEX_BYTES = 32 * 1024**2
_DTYPES = ("BF16", "F16", "F32", "F64")
"""The number formats of weights, by their names in safetensors. Others hold quantized weights."""


def load(
    shape: ModelShape, folder: Path | None, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Model:
    """Create the model on the device and fill its weights.

    Args:
        folder: a Hugging Face folder with safetensors; None: dummy weights, which are the same for the same
            seed, shape, dtype and type of device.

    Raises:
        ModelError: the folder holds no safetensors, or not exactly the tensors of this shape.
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
    """Fill the weights. Everything that the headers of the files tell is checked before any is read."""
    places = model.places()
    found = [tensor for file in _weight_files(folder) for tensor in _tensors_in(file)]
    wanted: dict[str, _Stored] = {}
    unexpected: list[str] = []
    for tensor in found:
        # Some OPT checkpoints omit the prefix.
        name = tensor.name if tensor.name in places else f"model.{tensor.name}"
        if name not in places:
            # Files may contain a copy of a tied head, and old files the RoPE frequencies.
            if not name.endswith(("lm_head.weight", "rotary_emb.inv_freq")):
                unexpected.append(tensor.name)
            continue
        if (other := wanted.get(name)) is not None:
            raise ModelError(f"{tensor.file}: {tensor.name} is in {other.file.name} too: remove one of them")
        tensor.check(places[name])
        wanted[name] = tensor
    missing = [name for name in places if name not in wanted]
    for kind, names in (("are missing", missing), ("are not this model's", unexpected)):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise ModelError(f"{folder}: {len(names)} tensors {kind}: {listed}")
    by_file: dict[Path, list[str]] = {}
    for name, tensor in wanted.items():
        by_file.setdefault(tensor.file, []).append(name)
    for file, names in by_file.items():
        with _opened(file) as weights:
            for name in names:
                places[name].copy_(weights.get_tensor(wanted[name].name))


class _Index(msgspec.Struct):
    """``model.safetensors.index.json``: in which file each tensor is."""

    weight_map: dict[str, str]


class _Stored(NamedTuple):
    """A tensor of a file, as the file's header describes it."""

    file: Path
    name: str
    shape: list[int]
    dtype: str

    def check(self, place: Tensor) -> None:
        """Raise ModelError if the tensor cannot be copied to this place of the model."""
        if self.shape != list(place.shape):
            raise ModelError(
                f"{self.file}: {self.name} is {self.shape}, but the sizes in config.json need "
                f"{list(place.shape)}"
            )
        if self.dtype not in _DTYPES:
            raise ModelError(
                f"{self.file}: {self.name} is stored as {self.dtype}, but must be one of "
                f"{', '.join(_DTYPES)}: quantized checkpoints are not supported"
            )


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that together hold the weights. Raises ModelError if there are none or some lack."""
    index = folder / "model.safetensors.index.json"
    found = read_json(index, _Index, MAX_INDEX_BYTES)
    if found is None:
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise ModelError(
                f"{folder} holds no safetensors file: convert the checkpoint to safetensors first"
            )
    else:
        for tensor, shard in found.weight_map.items():
            if not is_plain_name(shard):
                raise wrong(index, f"weight_map.{tensor:.60}", shard, "be the name of a file in this folder")
        files = [folder / shard for shard in sorted(set(found.weight_map.values()))]
        if not files:
            raise ModelError(f"{index}: weight_map is empty: download the model again")
    for file in files:
        if not exists(file):
            raise ModelError(f"{file} is missing, and {index.name} lists it: download it again")
    return files


def _tensors_in(file: Path) -> list[_Stored]:
    """Return what the header of a file says of its tensors."""
    with _opened(file) as weights:
        slices = ((name, weights.get_slice(name)) for name in weights.keys())  # noqa: SIM118 (not a dict)
        return [_Stored(file, name, list(part.get_shape()), part.get_dtype()) for name, part in slices]


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Open a file of weights. Raises ModelError if it is damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{file} cannot be read ({one_line(error)}): download it again") from None
