"""Watch every file of a mount."""

from __future__ import annotations

import os

from inside import call, hold

kept = call("fanotify_init", 0, os.O_RDONLY)
hold()
