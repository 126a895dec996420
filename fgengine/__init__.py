"""FastGen: an inference engine that preempts at every iteration.

    from fgengine import Engine, EngineConfig, SamplingParams

    engine = Engine.from_config(EngineConfig(model="smollm2-135m", policy="sj-mlfq"))
    for request in engine.generate([[1, 2, 3]], SamplingParams(max_tokens=20)):
        print(request.tokens)
    engine.close()

To write a scheduling policy, subclass ``SortedPolicy`` or ``Policy``: docs/writing-a-policy.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgengine.config import EngineConfig
    from fgengine.engine import Engine, QueueFull, QueueTimeout, RequestRefused
    from fgengine.request import Request, SamplingParams
    from fgengine.scheduling.policy import Level, Policy, PolicyContext, SortedPolicy

__all__ = [
    "Engine",
    "EngineConfig",
    "Level",
    "Policy",
    "PolicyContext",
    "QueueFull",
    "QueueTimeout",
    "Request",
    "RequestRefused",
    "SamplingParams",
    "SortedPolicy",
]

_MODULE_OF = {
    "EngineConfig": "config",
    **dict.fromkeys(("Engine", "QueueFull", "QueueTimeout", "RequestRefused"), "engine"),
    **dict.fromkeys(("Request", "SamplingParams"), "request"),
    **dict.fromkeys(("Level", "Policy", "PolicyContext", "SortedPolicy"), "scheduling.policy"),
}


def __getattr__(name: str) -> Any:
    # Each name is imported when it is first used, so that importing a small module does not load the engine.
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"fgengine.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'fgengine' has no attribute {name!r}")
