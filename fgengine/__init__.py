"""FastGen: an inference engine that preempts at every iteration."""

from fgengine.config import EngineConfig
from fgengine.engine import Engine, QueueFull, QueueTimeout, RequestRefused
from fgengine.request import SamplingParams

__all__ = ["Engine", "EngineConfig", "QueueFull", "QueueTimeout", "RequestRefused", "SamplingParams"]
