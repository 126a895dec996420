"""FastGen: an inference engine that preempts at every iteration."""

from fgengine.config import EngineConfig
from fgengine.engine import Engine, RequestRefused
from fgengine.request import SamplingParams

__all__ = ["Engine", "EngineConfig", "RequestRefused", "SamplingParams"]
