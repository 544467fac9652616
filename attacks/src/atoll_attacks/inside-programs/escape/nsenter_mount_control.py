"""Control of nsenter-mount: join the host's mount namespace by /proc/1/ns."""

from __future__ import annotations

import os

from inside import TARGET, W, call, show

call("mount", b"hide", os.path.dirname(W["secret"]).encode(), b"tmpfs", 0, None)

call("setns", os.open(f"/proc/{TARGET}/ns/mnt", os.O_RDONLY), 0)
show(W["secret"])
