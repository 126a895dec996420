"""FastGen: an inference engine that preempts at every iteration."""

import os

# OpenMP's threads spin while they wait for the next step, by default for milliseconds, and the client and the
# server need those cores. With a short spin they wait asleep; waking them costs some 50 us a step. On two
# cores a closed loop answered 8% more with 1,000 than with 30,000. Read when torch is first imported: so it
# stands here.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from fgengine.config import EngineConfig
from fgengine.engine import Engine, QueueFull, QueueTimeout, RequestRefused
from fgengine.request import SamplingParams

__all__ = ["Engine", "EngineConfig", "QueueFull", "QueueTimeout", "RequestRefused", "SamplingParams"]
