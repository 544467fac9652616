"""Load a module."""

from __future__ import annotations

import sys

from inside import call

image = open(sys.executable, "rb").read(65536)
call("init_module", image, len(image), b"")
