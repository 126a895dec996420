"""Picks the device and the number format; resolves "auto" for both."""

from __future__ import annotations

from typing import Literal

import torch

from fgengine.ops.cpu.processor import cpu_flags, cpu_name

Family = Literal["opt", "llama"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """Return the device for "cpu", "cuda" or "auto". Raises ValueError if CUDA is requested but missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was requested, but torch finds no CUDA device: use --device cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if wanted == "cuda" else torch.device("cpu")


def pick_dtype(wanted: str, device: torch.device, family: Family) -> torch.dtype:
    """Return the dtype for a name or "auto".

    "auto" on a GPU is the dtype in which the model family was released. On a CPU it is bfloat16 if the CPU
    has instructions that multiply bfloat16, else float32.
    """
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cuda":
        return torch.float16 if family == "opt" else torch.bfloat16
    return torch.bfloat16 if cpu_flags() & {"avx512_bf16", "amx_bf16"} else torch.float32


def device_name(device: torch.device) -> str:
    """Return the product name of the GPU or CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()
