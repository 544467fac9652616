"""Clone a mount by descriptor and attach it."""

from __future__ import annotations

import os

from inside import TAG, call, hold

os.makedirs("/tmp/m3/" + TAG, exist_ok=True)
tree = call("open_tree", -100, b"/tmp/m3", 1)
call("move_mount", tree, b"", -100, ("/tmp/m3/" + TAG).encode(), 4)
hold()
