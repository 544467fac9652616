"""The guest's own errors, all of one root. What a client sees of them is translated where its protocol is spoken.

    GuestError
    ├── CwdMissing                                          process/spawn.py
    ├── InvalidPath, RangeNotSatisfiable, NotAcceptable, MultipartError       files/
    └── UnknownContext, UnknownLanguage, TooManyContexts, KernelDied, KernelStartFailed, ZmtpError, …   interpreter/

Beside it only OSError and those of the protocols (`http1.server.HttpError`, `wire.envd.connect.ConnectError`).
"""

from __future__ import annotations


class GuestError(Exception):
    """Base of all that the guest raises on purpose."""
