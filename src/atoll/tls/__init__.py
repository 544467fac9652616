"""A certificate authority of the server's own, and the certificates that it issues. Imports the model only."""

from atoll.tls.authority import Authority

__all__ = ["Authority"]
