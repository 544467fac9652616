"""Atoll: sandboxes for AI agents on your own Linux machine, speaking E2B's protocol."""

__version__ = "0.1.0"
