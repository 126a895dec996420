"""Which device and which number format: what "auto" means here."""

from __future__ import annotations

from typing import Literal

import torch

from fgengine.ops.cpu.processor import cpu_flags, cpu_name

Family = Literal["opt", "llama"]
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(wanted: str) -> torch.device:
    """Raises ValueError when CUDA is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch finds no CUDA device here; use --device cpu")
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", torch.cuda.current_device()) if wanted == "cuda" else torch.device("cpu")


def pick_dtype(wanted: str, device: torch.device, family: Family) -> torch.dtype:
    """auto: on a GPU what the family was released in; on a CPU bfloat16 where it multiplies it natively."""
    if wanted != "auto":
        return _DTYPES[wanted]
    if device.type == "cuda":
        return torch.float16 if family == "opt" else torch.bfloat16
    return torch.bfloat16 if cpu_flags() & {"avx512_bf16", "amx_bf16"} else torch.float32


def device_name(device: torch.device) -> str:
    """The processor's own name, as a person would say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return cpu_name()
