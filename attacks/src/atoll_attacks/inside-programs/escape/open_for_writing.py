"""Open a file of the kernel for writing."""

from __future__ import annotations

import os

from inside import ARGUMENTS, hold

descriptor = os.open(ARGUMENTS[0], os.O_WRONLY)
hold()
