"""The server's own options, declared once: a command takes them all with ``@takes_options``."""

from __future__ import annotations

import functools
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from fgengine.config import Device, Dtype, EngineConfig, Offloading
from fgengine.kv.sizing import GIB, HOST_POOL_RATIO

DEFAULTS = EngineConfig()


def _option(panel: str, help: str, *names: str) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel)


_model = functools.partial(_option, "Model")
_scheduling = functools.partial(_option, "Scheduling")
_queue = functools.partial(_option, "Queue")
_memory = functools.partial(_option, "Memory")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What ``fgbench serve`` takes and ``fgbench run`` passes on; the names are the command line's."""

    model: Annotated[str, _model("A catalog name, or a Hugging Face folder.", "--model")] = DEFAULTS.model
    tokenizer: Annotated[
        str | None, _model("Another model's tokenizer: a catalog name or a folder.", "--tokenizer")
    ] = None
    device: Annotated[Device, _model("Where the model runs; auto: a GPU if there is one.", "--device")] = (
        DEFAULTS.device
    )
    dtype: Annotated[Dtype, _model("Number format of weights and KV.", "--dtype")] = DEFAULTS.dtype
    use_dummy_weights: Annotated[
        bool,
        _model(
            "Random weights: no download, real speed, no sense.", "--use-dummy-weights", "--dummy-weights"
        ),
    ] = DEFAULTS.dummy_weights
    max_model_len: Annotated[
        int | None, _model("Longest prompt + output, tokens; default: the model's.", "--max-model-len")
    ] = None
    seed: Annotated[int, _model("Of dummy weights and unseeded sampling.", "--seed")] = DEFAULTS.seed
    eager: Annotated[
        bool,
        _model("On a GPU: no CUDA graphs; slower decodes, a quicker start.", "--eager", "--enforce-eager"),
    ] = DEFAULTS.eager

    policy: Annotated[
        str | None,
        _scheduling(
            f"One of 'fgbench policies', or package.module:Class; default: {DEFAULTS.policy}.",
            "--policy",
            "--sched-policy",
        ),
    ] = None
    use_skip_join: Annotated[
        bool, _scheduling("With mlfq: the same as --policy sj-mlfq.", "--use-skip-join")
    ] = False
    starvation_limit: Annotated[
        float,
        _scheduling(
            "Seconds of waiting after which MLFQ promotes, at the earliest; the aging of sjf.",
            "--starvation-limit",
        ),
    ] = DEFAULTS.starvation_limit
    predictor: Annotated[
        str,
        _scheduling(
            "Output lengths for sjf and sprpt: oracle, noisy:SIGMA, learned or package.module:Class.",
            "--predictor",
        ),
    ] = DEFAULTS.predictor
    max_batch_size: Annotated[int, _scheduling("Requests in one step.", "--max-batch-size")] = (
        DEFAULTS.max_batch_size
    )
    max_tokens_per_batch: Annotated[
        int, _scheduling("New tokens in one step; longer prompts are chunked.", "--max-tokens-per-batch")
    ] = DEFAULTS.max_tokens_per_batch
    chunked_prefill: Annotated[
        bool,
        _scheduling(
            "Cut prompts to fill what decodes leave of --max-tokens-per-batch.",
            "--chunked-prefill",
            "--enable-chunked-prefill",
        ),
    ] = DEFAULTS.chunked_prefill
    profile: Annotated[
        Path | None,
        _scheduling("Cost model from 'fgbench profile'.", "--profile", "--profiling-file"),
    ] = None

    max_queue: Annotated[
        int | None,
        _queue(
            "Most requests that wait beyond a full batch; more get HTTP 429. Default: about a minute's work, "
            "printed at the start; 0: no limit.",
            "--max-queue",
        ),
    ] = DEFAULTS.max_queue
    max_queue_tokens: Annotated[
        int | None,
        _queue(
            "Most prompt tokens of requests that have not started; more get HTTP 429. Default: about a "
            "minute's work; 0, and with --max-queue 0: no limit.",
            "--max-queue-tokens",
        ),
    ] = DEFAULTS.max_queue_tokens
    queue_timeout: Annotated[
        float | None,
        _queue(
            "Seconds after which a request that has not started is dropped with HTTP 503; default: never.",
            "--queue-timeout",
        ),
    ] = DEFAULTS.queue_timeout

    block_size: Annotated[int, _memory("Tokens in a KV block.", "--block-size")] = DEFAULTS.block_size
    gpu_memory_utilization: Annotated[
        float,
        _memory("Share of device memory to use.", "--gpu-memory-utilization", "--device-memory-utilization"),
    ] = DEFAULTS.device_memory_utilization
    num_device_blocks: Annotated[
        int | None, _memory("KV blocks on the device, by hand.", "--num-device-blocks")
    ] = None
    swap_space: Annotated[
        float | None,
        _memory(
            f"Host memory for evicted KV, GiB; 0: recompute; default: {HOST_POOL_RATIO} times the device "
            "pool, as far as free memory allows.",
            "--swap-space",
        ),
    ] = None
    offloading: Annotated[
        Offloading, _memory("What becomes of preempted KV when room is needed.", "--offloading")
    ] = DEFAULTS.offloading
    proactive_offloading: Annotated[
        bool, _memory("The same as --offloading proactive.", "--proactive-offloading")
    ] = False

    @property
    def effective_policy(self) -> str:
        """The policy with ``use_skip_join`` applied.

        Raises:
            ValueError: skip-join asked for with a policy that has no queues to skip.
        """
        policy = self.policy or DEFAULTS.policy
        if not self.use_skip_join or policy in ("sj-mlfq", "sj-mlfq-artifact"):
            return policy
        if policy == "mlfq":
            return "sj-mlfq"
        raise ValueError(f"--use-skip-join goes with --policy mlfq or sj-mlfq, not {policy}")

    @property
    def effective_offloading(self) -> Offloading:
        """The mode with ``proactive_offloading`` applied.

        Raises:
            ValueError: it is asked for together with another mode.
        """
        if not self.proactive_offloading or self.offloading == "proactive":
            return self.offloading
        if self.offloading == DEFAULTS.offloading:
            return "proactive"
        raise ValueError(f"--proactive-offloading and --offloading {self.offloading} contradict each other")

    def to_engine_config(self) -> EngineConfig:
        """Raises ValueError for a value out of range, naming it, and for what would take a start to fail."""
        from fgengine.model.catalog import shape_of
        from fgengine.scheduling.policy import policy_class
        from fgengine.scheduling.predictors import check_predictor

        shape_of(self.model)
        policy_class(self.effective_policy)
        check_predictor(self.predictor)
        if self.swap_space is not None and not 0.0 <= self.swap_space < 2**30:
            raise ValueError(f"--swap-space must be 0 or more GiB, not {self.swap_space}")
        if self.profile is not None and not self.profile.is_file():
            raise ValueError(f"--profile: there is no file {self.profile}; 'fgbench profile' writes one")
        return EngineConfig(
            model=self.model,
            dummy_weights=self.use_dummy_weights,
            device=self.device,
            dtype=self.dtype,
            seed=self.seed,
            eager=self.eager,
            policy=self.effective_policy,
            starvation_limit=self.starvation_limit,
            max_batch_size=self.max_batch_size,
            max_tokens_per_batch=self.max_tokens_per_batch,
            max_model_len=self.max_model_len,
            block_size=self.block_size,
            num_device_blocks=self.num_device_blocks,
            device_memory_utilization=self.gpu_memory_utilization,
            swap_space_bytes=None if self.swap_space is None else int(self.swap_space * GIB),
            offloading=self.effective_offloading,
            predictor=self.predictor,
            chunked_prefill=self.chunked_prefill,
            max_queue=self.max_queue,
            max_queue_tokens=self.max_queue_tokens,
            queue_timeout=self.queue_timeout,
            profile=self.profile,
        )

    def to_argv(self) -> list[str]:
        """The options that differ from their defaults, as ``fgbench serve`` takes them."""
        argv: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value == field.default:
                continue
            flag = "--" + field.name.replace("_", "-")
            argv += [flag] if value is True else [flag, str(value)]
        return argv
