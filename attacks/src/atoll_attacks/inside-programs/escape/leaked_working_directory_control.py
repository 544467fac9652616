"""Control of leaked-working-directory: use a working directory outside."""

from __future__ import annotations

import os

from inside import TAG, W, show

jail = "/tmp/jail-" + TAG
os.makedirs(jail + "/inner")

os.chroot(jail)
show("../" * 12 + W["secret"].lstrip("/"))
