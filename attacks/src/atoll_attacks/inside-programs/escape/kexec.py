"""Start another kernel."""

from __future__ import annotations

from inside import call

call("kexec_load", 0, 0, None, 0)
call("kexec_load", 0, 1, bytes(32), 0)
