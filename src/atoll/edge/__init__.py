"""The way in: every request of the one port goes to the control plane or, streamed, to a sandbox."""

from atoll.edge.h2 import ALPN
from atoll.edge.routes import LiveRoutes
from atoll.edge.server import Edge, bind

__all__ = ["ALPN", "Edge", "LiveRoutes", "bind"]
