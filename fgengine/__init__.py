"""FastGen: an inference engine that preempts at every iteration.

    from fgengine import Engine, EngineConfig, SamplingParams

    engine = Engine.from_config(EngineConfig(model="smollm2-135m", policy="sj-mlfq"))
    for request in engine.generate([[1, 2, 3]], SamplingParams(max_tokens=20)):
        print(request.tokens)
    engine.close()

To write a scheduling policy, subclass ``SortedPolicy`` or ``Policy``: docs/writing-a-policy.md.
"""

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
