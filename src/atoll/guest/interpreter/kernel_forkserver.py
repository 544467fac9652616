"""Runs in the sandbox as its user, read from standard input: imports what a Python kernel needs, and forks kernels.

    guest ─ pair (argv[1]) ─► {"file": connection file, "cwd": …} with two descriptors: standard error, a link
    kernel ─ its link ─► "ready" once it is a child of the guest, or why it cannot begin;  guest ─ link ─► "go"

At a fork it has one thread of Python and no ZeroMQ context. It ends when the guest closes the pair, when nobody has
asked for long, and, instead of forking, when a package was installed or removed meanwhile: the guest starts another.
Standard library and the sandbox's ipykernel only.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import importlib.util
import json
import os
import site
import socket
import sys
from typing import Any

_LIBRARIES_AFTER_S = 2.0
"""So long after the last fork the usual libraries are imported, for the forks to come: half a second, 53 MB."""
_ENDS_AFTER_S = 300.0

_IMPORTED_LATER = (
    "IPython.core.completer", "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.oinspect",
    "IPython.extensions.storemagic", "faulthandler", "ipykernel.debugger", "pdb", "sqlite3", "tornado.platform.asyncio",
)  # fmt: skip
"""What a kernel imports while it starts."""

_SETTINGS = [(name, kind) for name in ("ipython_config", "ipython_kernel_config") for kind in ("py", "json")]


def _installed(app: Any) -> list[tuple[str, int]]:
    """Changes when a package is installed or removed where this process looks for one, or IPython's settings change."""

    def written(path: str) -> int:
        try:
            return os.stat(path).st_mtime_ns
        except OSError:
            return 0

    settings = [os.path.join(place, f"{name}.{kind}") for place in app.config_file_paths for name, kind in _SETTINGS]
    return [(path, written(path)) for path in (*sys.path, site.getusersitepackages(), *settings)]


def _keep_whole() -> None:
    """The collector leaves what is there alone: looking at it would copy it into every kernel."""
    gc.collect()
    gc.freeze()


def _serve(channel: socket.socket, app: Any, libraries: str) -> str:
    """Returns in the kernels alone: the connection file."""
    seen = _installed(app)
    imported = False
    channel.settimeout(_LIBRARIES_AFTER_S)
    _keep_whole()
    while True:
        try:
            request, fds, _, _ = socket.recv_fds(channel, 65536, 2)
        except TimeoutError:
            if imported:
                os._exit(0)
            exec(libraries, {"__name__": "_libraries"})
            imported = True
            channel.settimeout(_ENDS_AFTER_S)
            _keep_whole()
            continue
        if not request or len(fds) != 2 or _installed(app) != seen:
            os._exit(0)
        asked = json.loads(request)
        if _fork(channel):
            _become_a_kernel(asked["cwd"], *fds)
            return str(asked["file"])
        for fd in fds:
            os.close(fd)


def _fork(channel: socket.socket) -> bool:
    """True in the new process, when it has become a child of the guest: the one between them has ended."""
    released, held = os.pipe()
    try:
        between = os.fork()
    except OSError:
        between = -1  # no more processes: the guest sees that nobody answers
    if between == 0:
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            os._exit(1)
        channel.close()
        os.close(held)
        os.read(released, 1)
        os.close(released)
        return True
    if between > 0:
        os.waitpid(between, 0)
    os.close(held)
    os.close(released)
    return False


def _become_a_kernel(cwd: str, stderr: int, link_fd: int) -> None:
    os.setsid()
    with socket.socket(fileno=link_fd) as link:
        try:
            os.chdir(cwd)
        except OSError as error:
            link.send(str(error).encode())
            os._exit(1)
        link.send(b"ready")
        if link.recv(16) != b"go":
            os._exit(1)
    os.dup2(stderr, 2)
    os.close(stderr)
    for finder in sys.meta_path:
        random: Any = getattr(finder, "atoll_aside", {}).get("numpy.random")
        if random is not None:
            random.seed()  # Python's own generator sees to it by itself
    gc.enable()


def begin(libraries: str, startup: str) -> None:
    """Serves until the end; in a fork runs a kernel. `libraries`, `startup`: the texts of those programs."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    if sys.path[0] == "":
        del sys.path[0]  # as ipykernel's launcher does: no file in the current directory is taken for a module
    gc.disable()
    app = importlib.import_module("ipykernel.kernelapp").IPKernelApp.instance()
    for name in _IMPORTED_LATER:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    vars(sys)["_atoll_startup"] = compile(startup, "<startup>", "exec")
    channel, launcher = socket.socket(fileno=int(sys.argv[1])), importlib.util.find_spec("ipykernel_launcher")
    read_connection_file = app.init_connection_file

    def fork_and_read_it() -> None:
        app.connection_file = sys.argv[2] = _serve(channel, app, libraries)
        read_connection_file()

    # What comes before this step is the same in all kernels, and what comes after it is sockets and threads.
    app.init_connection_file = fork_and_read_it
    sys.argv = [str(launcher and launcher.origin), "-f", ""]
    app.initialize()
    app.start()
