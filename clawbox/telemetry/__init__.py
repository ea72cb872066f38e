"""What the server says about itself: logs, Prometheus metrics, and the id that ties them to a call.

A leaf: any part may import it. Parts that only report something take a callable or a small Protocol that
:class:`Metrics` fulfils, so that they need not know Prometheus.
"""

from clawbox.telemetry.context import request_id
from clawbox.telemetry.endpoint import MetricsEndpoint
from clawbox.telemetry.logs import configure_logging
from clawbox.telemetry.metrics import Metrics, PoolGauges

__all__ = ["Metrics", "MetricsEndpoint", "PoolGauges", "configure_logging", "request_id"]
