"""The same by clone3, whose flags no filter can see."""

from __future__ import annotations

import os
import struct
import time

from inside import CLONE, call, hold

arguments = struct.pack("11Q", CLONE["user"], 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
pid = call("clone3", arguments, len(arguments))
if pid == 0:
    time.sleep(3)
    os._exit(0)
hold()
