"""The engine's settings: frozen, checked when made, the same words as on the command line."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Offloading = Literal["none", "reactive", "proactive", "blocking", "recompute", "auto"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything the engine needs to know before the first request.

    Raises:
        ValueError: for a value outside its range; the message names the setting and the range.
    """

    model: str = "smollm2-135m"
    """A name from the catalog, or the path of a Hugging Face folder."""
    dummy_weights: bool = False
    """Seeded random weights: nothing is downloaded, the speed is real, the text is not."""
    device: Device = "auto"
    dtype: Dtype = "auto"
    """auto: the checkpoint's on a GPU; on a CPU bfloat16 where it computes it natively, else float32."""
    seed: int = 0
    eager: bool = False
    """On a GPU: decode without CUDA graphs. They are slower then, but start at once and take no memory."""

    policy: str = "sj-mlfq"
    """A registered policy's name, or ``package.module:Class``."""
    starvation_limit: float = 30.0
    """MLFQ's alpha: seconds a job may wait since it last ran before it is promoted to the first queue.
    Under sjf: a request is never overtaken by one that arrived more than this later."""
    predictor: str = "learned"
    """Where sjf and sprpt take output lengths from: ``oracle``, ``noisy:SIGMA``, ``learned`` or
    ``package.module:Class``."""
    max_batch_size: int = 16
    max_tokens_per_batch: int = 2048
    """New tokens computed in one step. A longer prompt is computed over several steps."""
    chunked_prefill: bool = False
    """Cut every prompt so that it fills the tokens that a step's decodes leave over."""
    max_model_len: int | None = None
    """Longest prompt + output; None: what the model was made for."""

    block_size: int = 16
    """Tokens in a KV block."""
    num_device_blocks: int | None = None
    """None: from ``device_memory_utilization``."""
    device_memory_utilization: float = 0.9
    """On a GPU the share of its memory for weights, activations and KV; on a CPU, where the operating
    system's own need comes first, the share of what is available after loading, capped by
    ``fgengine.kv.sizing.CPU_POOL_LIMIT_BYTES``."""
    swap_space_bytes: int | None = None
    """Size of the host pool; 0: an evicted request is recomputed. None: about four times the device pool, as
    far as free memory allows (``fgengine.kv.sizing``); 0 where ``offloading`` never copies."""
    offloading: Offloading = "reactive"
    """What becomes of a preempted request's KV when others need the room. ``none``: nothing, a request is
    admitted only with room for its longest; ``reactive``: swapped to the host while steps go on;
    ``proactive``: ahead of need as well (the paper's); ``blocking``: swapped while no step runs (the paper's
    reactive swapping); ``recompute``: thrown away; ``auto``: swapped or thrown away, whichever the cost model
    says is sooner undone. With a full host pool KV is thrown away only for the next token of a request that
    could not go on otherwise."""
    max_queue: int | None = None
    """Most requests that may wait: unfinished ones beyond a full batch. More are refused. None: about a
    minute's work of this machine (``fgengine.scheduling.queue_limit``); 0: no limit."""
    max_queue_tokens: int | None = None
    """Most prompt tokens of requests that have not started. None and 0: as for ``max_queue``, whose 0 is
    this one's default too."""
    queue_timeout: float | None = None
    """Seconds after its arrival at which a request that has not started is dropped; None: never."""
    profile: Path | None = None
    """A profile written by ``fgengine.profiler``; None: measured when the policy needs one."""

    @property
    def copies_to_host(self) -> bool:
        """Whether ``offloading`` ever copies KV to the host pool."""
        return self.offloading not in ("none", "recompute")

    def __post_init__(self) -> None:
        def between(name: str, low: int, high: int) -> None:
            value = getattr(self, name)
            if value is not None and not value >= low:
                raise ValueError(f"{name} must be at least {low}, not {value}")
            if value is not None and value > high:
                raise ValueError(f"{name} must be at most {high}, not {value}")

        between("max_batch_size", 1, 2**16)
        between("max_tokens_per_batch", 1, 2**24)
        between("max_model_len", 2, 2**24)
        between("num_device_blocks", 1, 2**31)
        between("swap_space_bytes", 0, 2**60)
        between("seed", 0, 2**63 - 1)
        between("max_queue", 0, 2**31)
        between("max_queue_tokens", 0, 2**40)
        if self.queue_timeout is not None and not 0.0 < self.queue_timeout < math.inf:
            raise ValueError(f"queue_timeout must be above 0 seconds and finite, not {self.queue_timeout}")
        if self.block_size not in (8, 16, 32, 64, 128):
            raise ValueError(f"block_size must be 8, 16, 32, 64 or 128, not {self.block_size}")
        if not 0.0 < self.device_memory_utilization <= 1.0:
            raise ValueError(
                "device_memory_utilization must be above 0 and at most 1, "
                f"not {self.device_memory_utilization}"
            )
        if not 0.0 < self.starvation_limit < math.inf:
            raise ValueError(
                f"starvation_limit must be above 0 seconds and finite, not {self.starvation_limit}"
            )
