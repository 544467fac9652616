"""The same by thread."""

from __future__ import annotations

import time

from inside import W, attempt, call

attempt(call, "tkill", W["victim"], 9)
time.sleep(0.2)
