"""Set a limit of the guest's: the resource's number and its new value."""

from __future__ import annotations

import struct
import time

from inside import ARGUMENTS, TARGET, call

number, value = map(int, ARGUMENTS)
call("prlimit64", TARGET, number, struct.pack("QQ", value, value), None)
time.sleep(1 if number == 0 else 0)
