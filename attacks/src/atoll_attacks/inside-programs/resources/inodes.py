"""Use up the host's files."""

from __future__ import annotations

import os
import subprocess

from inside import TAG, TARGET

made = 0
place = "/var/tmp/many-" + TAG
os.mkdir(place)
try:
    while made < 12500:
        os.close(os.open(f"{place}/{made}", os.O_CREAT | os.O_WRONLY))
        made += 1
except OSError as error:
    print(error)
if TARGET != 1:
    subprocess.run(["rm", "-rf", place])
print("MADE", made, "DONE", flush=True)
