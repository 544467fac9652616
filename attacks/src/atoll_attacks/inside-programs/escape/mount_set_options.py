"""Make a read-only mount writable by its descriptor (mount_setattr), and a copy of it too."""

from __future__ import annotations

import os
import struct

from inside import attempt, call, hold

READ_ONLY, RECURSIVE, EMPTY_PATH, CLONE_TREE = 1, 0x8000, 0x1000, 1
attributes = struct.pack("4Q", 0, READ_ONLY, 0, 0)
attempt(call, "mount_setattr", -100, b"/proc/sys", RECURSIVE, attributes, len(attributes))
tree = attempt(call, "open_tree", -100, b"/proc/sys", CLONE_TREE)
kept = [attempt(os.open, "/proc/sys/kernel/core_pattern", os.O_WRONLY)]
if tree is not None:
    attempt(call, "mount_setattr", tree, b"", EMPTY_PATH | RECURSIVE, attributes, len(attributes))
    kept.append(attempt(lambda: os.open("kernel/core_pattern", os.O_WRONLY, dir_fd=tree)))
hold(kept)
