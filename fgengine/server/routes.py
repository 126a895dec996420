"""The routes that machines ask at fixed intervals: load balancers, supervisors and monitors.

Several modules treat them in their own way: they need no key, are answered at the limit of connections, or
are not counted.
"""

from __future__ import annotations

READY = ("/health", "/health/ready")
"""Routes that tell whether requests are served."""
LIVE = "/health/live"
"""The route that tells that the server's process answers."""
HEALTH = frozenset({*READY, LIVE})
"""Routes that are answered without a key, under any name of the server, and at the limit of connections."""
STATS, METRICS = "/stats", "/metrics"
PROBES = HEALTH | {STATS, METRICS}
"""Routes that are asked so often that their requests are logged only at debug and are not in the figures."""
