"""Put swap on the machine."""

from __future__ import annotations

from inside import call

open("/tmp/swap", "wb").write(bytes(4086) + b"SWAPSPACE2" + bytes(1 << 20))
call("swapon", b"/tmp/swap", 0)
