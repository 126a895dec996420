"""FastGen: an inference engine that preempts at every iteration."""

import os

# torch's OpenMP threads wait for each other by spinning, by default long enough that one of them, put aside
# for the client or another process, holds up the step for a whole time slice. With a short spin it costs a
# wake-up instead: on two cores shared with other work a decode step was 25 times shorter, on idle ones no
# longer. Read when torch is first imported, which is why it stands here.
os.environ.setdefault("GOMP_SPINCOUNT", "30000")

from fgengine.config import EngineConfig
from fgengine.engine import Engine, QueueFull, QueueTimeout, RequestRefused
from fgengine.request import SamplingParams

__all__ = ["Engine", "EngineConfig", "QueueFull", "QueueTimeout", "RequestRefused", "SamplingParams"]
