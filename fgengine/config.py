"""The engine's settings: frozen, checked when made, under the names of the command line's options."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from fgengine.settings import Setting, check

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Offloading = Literal["none", "reactive", "proactive", "blocking", "recompute", "auto"]
GIB = 2**30

_model = partial(Setting, group="Model")
_scheduling = partial(Setting, group="Scheduling")
_queue = partial(Setting, group="Queue")
_memory = partial(Setting, group="Memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Everything that a server needs to know before the first request.

        EngineConfig(model="smollm2-135m", policy="fcfs", max_batch_size=32)

    Raises:
        ValueError: for a value out of its bounds; the message names the setting and the bound.
    """

    model: Annotated[str, _model("A catalog name, or a Hugging Face folder.", first=True)] = "smollm2-135m"
    tokenizer: Annotated[str | None, _model("Another model's tokenizer: a catalog name or a folder.")] = None
    device: Annotated[Device, _model("Where the model runs; auto: a GPU if there is one.")] = "auto"
    dtype: Annotated[Dtype, _model("Number format of weights and KV.")] = "auto"
    """auto: the checkpoint's on a GPU; on a CPU bfloat16 where it computes it natively, else float32."""
    use_dummy_weights: Annotated[
        bool, _model("Random weights: no download; realistic speed, meaningless output.")
    ] = False
    max_model_len: Annotated[
        int | None,
        _model("Longest prompt + output, tokens; default: the model's.", unit="tokens", ge=2, le=2**24),
    ] = None
    engine_seed: Annotated[int, _model("Of dummy weights and unseeded sampling.", ge=0, le=2**63 - 1)] = 0
    eager: Annotated[bool, _model("On a GPU: no CUDA graphs; slower decodes, a quicker start.")] = False

    policy: Annotated[str, _scheduling("One of 'fgbench policies', or package.module:Class.", first=True)] = (
        "sj-mlfq"
    )
    starvation_limit: Annotated[
        float,
        _scheduling(
            "Seconds of waiting after which MLFQ promotes, at the earliest; the aging of sjf.",
            unit="seconds",
            gt=0,
            finite=True,
        ),
    ] = 30.0
    """MLFQ's alpha: seconds a job may wait since it last ran before it is promoted to the first queue.
    Under sjf: a request is never overtaken by one that arrived more than this later."""
    predictor: Annotated[
        str, _scheduling("Output lengths for sjf, sprpt: oracle, noisy:SIGMA, learned, package.module:Class.")
    ] = "learned"
    max_batch_size: Annotated[int, _scheduling("Requests in one step.", unit="requests", ge=1, le=2**16)] = 16
    max_tokens_per_batch: Annotated[
        int,
        _scheduling("New tokens in one step; longer prompts are chunked.", unit="tokens", ge=1, le=2**24),
    ] = 2048
    chunked_prefill: Annotated[
        bool, _scheduling("Cut prompts to fill what decodes leave of --max-tokens-per-batch.")
    ] = False
    profile: Annotated[Path | None, _scheduling("Cost model from 'fgbench profile'.")] = None
    """None: a profile of this machine is found or measured when the policy needs one."""

    max_queue: Annotated[
        int | None,
        _queue(
            "Most requests that wait beyond a full batch; more get HTTP 429. Default: about a minute's work, "
            "printed at the start; 0: no limit.",
            unit="requests",
            ge=0,
            le=2**31,
        ),
    ] = None
    max_queue_tokens: Annotated[
        int | None,
        _queue(
            "Most prompt tokens of requests that have not started; more get HTTP 429. Default: about a "
            "minute's work; 0, and with --max-queue 0: no limit.",
            unit="tokens",
            ge=0,
            le=2**40,
        ),
    ] = None
    queue_timeout: Annotated[
        float | None,
        _queue(
            "Seconds after which a request that has not started is dropped with HTTP 503; default: never.",
            unit="seconds",
            gt=0,
            finite=True,
        ),
    ] = None

    block_size: Annotated[
        int,
        _memory("Tokens in a KV block: 8, 16, 32, 64 or 128.", unit="tokens", choices=(8, 16, 32, 64, 128)),
    ] = 16
    gpu_memory_utilization: Annotated[float, _memory("Share of device memory to use.", gt=0, le=1)] = 0.9
    """On a GPU the share of its memory for weights, activations and KV; on a CPU, where the operating
    system's own need comes first, the share of what is available after loading, capped by
    ``fgengine.kv.sizing.CPU_POOL_LIMIT_BYTES``."""
    num_device_blocks: Annotated[
        int | None, _memory("KV blocks on the device, by hand.", unit="blocks", ge=1, le=2**31)
    ] = None
    """None: from ``gpu_memory_utilization``."""
    swap_space: Annotated[
        float | None,
        _memory(
            "Host memory for evicted KV, GiB; 0: recompute; default: 4 times the device pool, as far as free "
            "memory allows.",
            unit="GiB",
            ge=0,
            le=2**30,
        ),
    ] = None
    """Size of the host pool. None: ``fgengine.kv.sizing`` decides; 0 where ``offloading`` never copies."""
    offloading: Annotated[Offloading, _memory("What happens to preempted KV when memory is needed.")] = (
        "reactive"
    )
    """``none``: nothing, a request is admitted only where its longest length fits; ``reactive``: swapped to
    the host while steps go on; ``proactive``: ahead of need as well (the paper's); ``blocking``: swapped
    while no step runs (the paper's reactive swapping); ``recompute``: thrown away; ``auto``: swapped or
    thrown away, whichever the cost model says is sooner undone. With a full host pool KV is thrown away only
    for the next token of a request that could not go on otherwise."""

    def __post_init__(self) -> None:
        check(self)

    @property
    def swap_space_bytes(self) -> int | None:
        return None if self.swap_space is None else int(self.swap_space * GIB)

    @property
    def copies_to_host(self) -> bool:
        """Whether ``offloading`` ever copies KV to the host pool."""
        return self.offloading not in ("none", "recompute")
