"""Control of host-paths: learn paths of the host from the mount table."""

from __future__ import annotations

import os

from inside import W, call, show

call("mount", os.path.dirname(W["secret"]).encode(), b"/mnt", None, 4096, None)
show("/proc/self/mountinfo")
