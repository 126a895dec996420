"""The engine's settings. Each field has the name of its command-line option."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from fgengine.settings import Setting, check

Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
Offloading = Literal["none", "reactive", "proactive", "blocking", "recompute", "auto"]
Admission = Literal["guarded", "eager"]
GIB = 2**30

_model = partial(Setting, group="Model")
_scheduling = partial(Setting, group="Scheduling")
_queue = partial(Setting, group="Queue")
_memory = partial(Setting, group="Memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """The settings of an engine. They are checked when the object is created and cannot be changed later.

        config = EngineConfig(model="smollm2-135m", policy="fcfs", max_batch_size=32)
        engine = Engine.from_config(config)

    Raises ValueError if a value is out of its bounds; the message names the setting and the bound.
    """

    model: Annotated[str, _model("A catalog name, or a Hugging Face folder.", first=True)] = "smollm2-135m"
    tokenizer: Annotated[str | None, _model("Another model's tokenizer: a catalog name or a folder.")] = None
    device: Annotated[Device, _model("Where the model runs; auto: a GPU if there is one.")] = "auto"
    dtype: Annotated[Dtype, _model("Number format of weights and KV.")] = "auto"
    """auto: on a GPU the checkpoint's format; on a CPU bfloat16 if the CPU supports it natively, else
    float32."""
    use_dummy_weights: Annotated[
        bool, _model("Random weights: no download; realistic speed, meaningless output.")
    ] = False
    max_model_len: Annotated[
        int | None,
        _model("Longest prompt + output, tokens; default: the model's.", unit="tokens", ge=2, le=2**24),
    ] = None
    engine_seed: Annotated[
        int, _model("Seed of dummy weights and of sampling without a seed.", ge=0, le=2**63 - 1)
    ] = 0
    eager: Annotated[bool, _model("On a GPU: no CUDA graphs; slower decodes, faster start.")] = False

    policy: Annotated[str, _scheduling("One of 'fgbench policies', or package.module:Class.", first=True)] = (
        "sj-mlfq"
    )
    starvation_limit: Annotated[
        float,
        _scheduling(
            "MLFQ: seconds of waiting before promotion, at least; sjf: limit of overtaking.",
            unit="seconds",
            gt=0,
            finite=True,
        ),
    ] = 30.0
    """MLFQ's alpha: seconds that a job waits, since it last ran, before it is promoted to the first queue.
    sjf: a request is never overtaken by one that arrived more than this number of seconds later."""
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
    admission: Annotated[
        Admission,
        _scheduling(
            "guarded: no request starts while memory is nearly full or too much work is unfinished, so long "
            "overloads do not collapse; eager: the policy alone decides until both KV pools are full, as in "
            "the FastServe paper."
        ),
    ] = "guarded"
    profile: Annotated[Path | None, _scheduling("Cost model from 'fgbench profile'.")] = None
    """None: if the policy needs a profile of this machine, it is found or measured."""
    device_spec: Annotated[
        str | None,
        _model(
            "Serve or simulate a device that is not here, such as a100-40gb: its analytic profile decides "
            "how long steps take."
        ),
    ] = None
    """A name in ``fgengine.devices.DEVICES``, or the file of an analytic profile."""
    step_overhead_ms: Annotated[
        float | None,
        _model(
            "With --device-spec: fixed milliseconds of each step, besides reading and arithmetic; default: "
            "0.3, and 0.03 for each layer.",
            unit="milliseconds",
            ge=0,
            le=1000,
        ),
    ] = None
    """Milliseconds in which the device waits for the host, and of small kernels. None: as ``device_spec``."""

    max_queue: Annotated[
        int | None,
        _queue(
            "Maximum waiting requests beyond a full batch; more get HTTP 429. Default: about a minute's "
            "work, printed at the start; 0: no limit.",
            unit="requests",
            ge=0,
            le=2**31,
        ),
    ] = None
    max_queue_tokens: Annotated[
        int | None,
        _queue(
            "Maximum prompt tokens of requests that have not started; more get HTTP 429. Default: about a "
            "minute's work, or no limit with --max-queue 0; 0: no limit.",
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
    """On a GPU: the share of its memory for weights, activations and KV. On a CPU: the share of the memory
    that is free after loading, at most ``fgengine.kv.sizing.CPU_POOL_LIMIT_BYTES``."""
    num_device_blocks: Annotated[
        int | None,
        _memory("KV blocks on the device; default: as memory allows.", unit="blocks", ge=1, le=2**31),
    ] = None
    """None: computed from ``gpu_memory_utilization``."""
    swap_space: Annotated[
        float | None,
        _memory(
            "Host memory for offloaded KV, GiB; 0: recompute; default: 4 times the device pool, if free "
            "memory allows.",
            unit="GiB",
            ge=0,
            le=2**30,
        ),
    ] = None
    """Size of the host pool. None: ``fgengine.kv.sizing`` computes it; 0 if ``offloading`` never copies."""
    offloading: Annotated[Offloading, _memory("What happens to preempted KV when memory is needed.")] = (
        "reactive"
    )
    """What happens to the KV of preempted requests if other requests need the memory.

    - ``none``: nothing is evicted; a request is admitted only if memory for its maximum length is free.
    - ``reactive``: offloaded to the host while steps continue.
    - ``proactive``: as ``reactive``, and also before the memory is needed (FastServe's mode).
    - ``blocking``: offloaded while no step runs (FastServe's reactive swapping).
    - ``recompute``: discarded and recomputed later.
    - ``auto``: offloaded or discarded, whichever costs less time according to the cost model.

    If the host pool is full, KV is discarded only for the next token of a request that could not continue
    otherwise.
    """

    def __post_init__(self) -> None:
        check(self)

    @property
    def swap_space_bytes(self) -> int | None:
        """``swap_space`` in bytes."""
        return None if self.swap_space is None else int(self.swap_space * GIB)

    @property
    def copies_to_host(self) -> bool:
        """Whether ``offloading`` ever copies KV to the host pool."""
        return self.offloading not in ("none", "recompute")
