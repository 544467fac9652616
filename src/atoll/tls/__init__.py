"""A certificate authority of the server's own, and TLS contexts for servers. Imports nothing of ours but errors."""

from atoll.tls.authority import Authority
from atoll.tls.front import from_authority, from_files

__all__ = ["Authority", "from_authority", "from_files"]
