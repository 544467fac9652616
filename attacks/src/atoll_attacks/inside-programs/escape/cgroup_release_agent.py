"""Have the host's kernel start a program as root: the release agent of a control group, or (`nested`) of one in a user
and cgroup namespace of one's own."""

from __future__ import annotations

import os
import time

from inside import ARGUMENTS, CLONE, TAG, W, attempt, call

place = "/tmp/cg-" + TAG


def write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def armed() -> None:
    write(place + "/release_agent", W["script"])
    os.mkdir(place + "/x")
    write(place + "/x/notify_on_release", "1")
    pid = os.fork()
    if pid == 0:
        write(place + "/x/cgroup.procs", "0")
        os._exit(0)
    os.waitpid(pid, 0)
    time.sleep(0.5)


os.makedirs(place)
try:
    options = ("none,name=" + TAG).encode()
    if "nested" in ARGUMENTS:
        call("unshare", CLONE["user"] | CLONE["mnt"] | CLONE["cgroup"])
        options = b"memory"
    call("mount", b"cgroup", place.encode(), b"cgroup", 0, options)
    armed()
finally:
    attempt(os.rmdir, place + "/x")
    attempt(call, "umount2", place.encode(), 2)
    attempt(os.rmdir, place)
