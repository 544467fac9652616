"""Mount in a user namespace of one's own."""

from __future__ import annotations

import os

from inside import CLONE, TAG, call, in_child


def act() -> None:
    call("unshare", CLONE["user"] | CLONE["mnt"])
    os.makedirs("/tmp/m2", exist_ok=True)
    call("mount", TAG.encode(), b"/tmp/m2", b"tmpfs", 0, None)


in_child(act)
