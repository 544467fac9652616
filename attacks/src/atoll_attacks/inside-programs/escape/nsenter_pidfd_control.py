"""Control of nsenter-pidfd: join namespaces by a process descriptor."""

from __future__ import annotations

import os

from inside import CLONE, TARGET, W, call, show

call("mount", b"hide", os.path.dirname(W["secret"]).encode(), b"tmpfs", 0, None)

call("setns", call("pidfd_open", TARGET, 0), CLONE["mnt"])
show(W["secret"])
