"""Start threads without end."""

from __future__ import annotations

import os
import threading
import time

made = 0
try:
    while made < 5000:
        threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
        made += 1
except RuntimeError as error:
    print(error)
print("THREADS", made, "DONE", flush=True)
os._exit(0)
