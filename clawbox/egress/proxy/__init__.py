"""The sidecar's work: requests of one sandbox in, decided, cleaned and forwarded, each written down.

No socket is created and no name resolved here: listeners are handed in, and connections come from a Dialer.
"""

from clawbox.egress.proxy.ports import ClientTls, Dialed, Dialer, Rows, ServerTls
from clawbox.egress.proxy.server import Proxy

__all__ = ["ClientTls", "Dialed", "Dialer", "Proxy", "Rows", "ServerTls"]
