"""Creates the parts of an engine: the runner with the loaded model, and the scheduler."""

from __future__ import annotations

from collections.abc import Callable

from fgengine import profile_cache, quick_speed
from fgengine.config import EngineConfig
from fgengine.execution.create import create_runner
from fgengine.execution.machine import require_memory
from fgengine.execution.runner import TorchRunner
from fgengine.kv.sizing import Pools
from fgengine.model import catalog, store
from fgengine.scheduling.policy import policy_class
from fgengine.scheduling.scheduler import Scheduler

Report = Callable[[str], None]
"""A function that gets a message before each slow step."""


def load_runner(config: EngineConfig, report: Report) -> TorchRunner:
    """Load the model onto its device and allocate the KV pools.

    Raises ValueError if the model or the policy cannot be used.
    """
    policy_class(config.policy)  # detect a misspelt name before the slow load of the model
    shape = catalog.shape_of(config.model)
    folder = None if config.use_dummy_weights else store.folder_of(config.model)
    if folder is None and not config.use_dummy_weights:
        require_memory(config, shape)  # do not suggest a download that could not be loaded
        raise ValueError(
            f"the weights of {config.model} are not here: pull them with `fgbench models pull "
            f"{config.model}`, or ask for dummy weights"
        )
    report(f"loading {config.model}")
    runner = create_runner(config, shape, folder, report)
    if runner.device.type == "cpu":
        report(f"computing with {runner.num_threads} thread{'' if runner.num_threads == 1 else 's'}")
    return runner


def make_scheduler(config: EngineConfig, runner: TorchRunner, report: Report) -> Scheduler:
    """Create the scheduler. Finds or measures a profile if the policy or the offloading mode needs one.

    Raises ValueError if the policy, the predictor or the profile cannot be used.
    """
    needs_cost = policy_class(config.policy).needs_cost or config.offloading == "auto"
    cost = profile_cache.ensure(config, runner, report).cost if needs_cost else None
    scheduler = Scheduler.build(
        config,
        Pools(runner.num_device_blocks, runner.num_host_blocks),
        block_bytes=runner.block_bytes,
        max_model_len=runner.max_model_len,
        eos_token_ids=runner.shape.eos_token_ids,
        cost=cost,
        speed=lambda: quick_speed.speed_of(config, runner, cost, report),
    )
    report(scheduler.queue.limit.describe())
    return scheduler
