"""The same by descriptor."""

from __future__ import annotations

import time

from inside import W, call

pidfd = call("pidfd_open", W["victim"], 0)
call("pidfd_send_signal", pidfd, 9, None, 0)
time.sleep(0.2)
