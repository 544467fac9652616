"""Control of leaked-descriptor: use a directory that the host left open."""

from __future__ import annotations

import os

from inside import TAG, W

jail = "/tmp/jail-" + TAG
os.makedirs(jail + "/inner")

outside = os.open("/", os.O_RDONLY)
os.chroot(jail)
os.chdir("/")
print(os.read(os.open(W["secret"].lstrip("/"), os.O_RDONLY, dir_fd=outside), 200))
