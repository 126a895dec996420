"""The model on a device: only these modules import torch at the start of an engine."""

import os

# OpenMP's threads spin while they wait for the next step, by default for milliseconds, and the client and the
# server need those cores. With a short spin they wait asleep; waking them costs some 50 us a step. On two
# cores a closed loop answered 8% more with 1,000 than with 30,000. Read when torch is first imported, so it
# is set before that, and only in a process that makes an engine.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
