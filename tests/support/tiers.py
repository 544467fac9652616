"""The isolation tiers as a parameter of tests, and what differs between them.

Every test that uses `server` (tests/conftest.py) runs once in each tier: `test_x[namespaces]`, `test_x[gvisor]`. One
that says nothing about a tier keeps the first alone, with its reason: `pytestmark = one_tier("…")`, and what does say
something in such a file is marked `@every_tier`. What programs see differently stands in DIFFERENCES;
`test_sdk_tiers.py` asserts each line in each tier, and docs/compatibility.md has the same lines.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from support.host import TOOLS

TIERS = ("namespaces", "gvisor")

SERVER_ENVIRON = {"namespaces": {}, "gvisor": {"ATOLL_TOOLS_DIR": str(TOOLS)}}
"""What a server of a tier needs in its environment."""

OLD = "newer than the gVisor that Debian has (July 2024); programs fall back as on an old kernel"


def one_tier(reason: str) -> pytest.MarkDecorator:
    """Marks tests that run in the first tier alone; `reason` says why the other would show nothing new."""
    assert reason
    return pytest.mark.one_tier(reason)


every_tier = pytest.mark.every_tier
"""Marks a test that runs in each tier, whatever its module says."""


def tiers_of(metafunc: pytest.Metafunc) -> tuple[str, ...]:
    """The tiers that a test runs in."""
    closest = metafunc.definition.get_closest_marker
    return TIERS[:1] if closest("one_tier") and not closest("every_tier") else TIERS


@dataclass(frozen=True, slots=True)
class Seen:
    """What a tier shows: in words, and as a pattern of the command's whole output (stdout and stderr, stripped)."""

    told: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Difference:
    """`command` runs in bash as the sandbox's user, in a directory of its own, in a sandbox of the template `base`."""

    name: str
    what: str
    command: str
    namespaces: Seen
    gvisor: Seen
    why: str

    def seen(self, tier: str) -> Seen:
        found: Seen = getattr(self, tier)
        return found


def _python(code: str) -> str:
    """A command that prints what `code` does, or the name of the error."""
    head = "import ctypes, errno, os, socket\ncall = ctypes.CDLL(None, use_errno=True).syscall\n"
    head += "def told(*arguments): return errno.errorcode[ctypes.get_errno()] if call(*arguments) < 0 else 'works'\n"
    body = f"try:\n    {code}\nexcept OSError as error: print(errno.errorcode[error.errno])"
    return f"python3 - <<'END'\n{head}{body}\nEND"


WORKS, ENOSYS = Seen("works", "works"), Seen("`ENOSYS`", "ENOSYS")

DIFFERENCES = (
    Difference(
        "kernel",
        "the kernel (`uname -r`)",
        "uname -r",
        Seen("the host's", r"(?!4\.4\.0$)\S+"),
        Seen("4.4.0", r"4\.4\.0"),
        "gVisor is a kernel of the sandbox's own; this is the version that it says of itself",
    ),
    Difference(
        "set-uid",
        "set-uid and set-gid programs (`su`, `passwd`)",
        "cp /usr/bin/id . && sudo chown root id && sudo chmod 4755 id && ./id -u",
        Seen("run as their owner", "0"),
        Seen("run as the caller; `sudo` is a client of the guest and works", "1000"),
        "this release of gVisor ignores the bit",
    ),
    Difference(
        "attributes",
        "extended attributes of files",
        _python("open('f', 'w'); os.setxattr('f', 'user.a', b'1'); print('works')"),
        WORKS,
        Seen("`ENOTSUP`; the metadata of the SDK's `files` is kept by the guest while the sandbox lives", "ENOTSUP"),
        "gVisor's gofer passes none on",
    ),
    Difference(
        "low-ports",
        "ports below 1024 for the user",
        _python("socket.socket().bind(('127.0.0.1', 81)); print('works')"),
        Seen("`EACCES`; root has them", "EACCES"),
        WORKS,
        "gVisor's own network stack asks nobody for a right to a low port",
    ),
    Difference(
        "sock-diag",
        "sockets by netlink (`ss`)",
        _python("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4); print('works')"),
        WORKS,
        Seen("`EPROTONOSUPPORT`; `ss` complains and reads /proc/net", "EPROTONOSUPPORT"),
        "gVisor has routes by netlink and nothing else",
    ),
    Difference(
        "copy-file-range",
        "`copy_file_range`",
        _python("open('f', 'w'); a = os.open('f', os.O_RDWR); os.copy_file_range(a, a, 0); print('works')"),
        WORKS,
        ENOSYS,
        OLD,
    ),
    Difference(
        "openat2",
        "`openat2`",
        _python("print(told(437, -100, b'/etc/hostname', ctypes.create_string_buffer(24), 24))"),
        WORKS,
        ENOSYS,
        OLD,
    ),
    Difference(
        "close-range",
        "`close_range`",
        _python("print(told(436, 100, 200, 0))"),
        WORKS,
        ENOSYS,
        "this release of gVisor refuses ranges without an end; programs fall back as on an old kernel",
    ),
    Difference(
        "pidfd",
        "`pidfd_open`",
        _python("print(told(434, os.getpid(), 0))"),
        WORKS,
        ENOSYS,
        f"{OLD}; and a filter keeps it so: it would be a way to the guest",
    ),
    Difference(
        "landlock",
        "Landlock",
        _python("print(told(444, 0, 0, 1))"),
        WORKS,
        ENOSYS,
        OLD,
    ),
    Difference(
        "nameless-files",
        "files without a name (`O_TMPFILE`)",
        _python("os.open('.', os.O_TMPFILE | os.O_RDWR); print('works')"),
        WORKS,
        Seen("`ENOTSUP`", "ENOTSUP"),
        "gVisor's gofer has no such call",
    ),
    Difference(
        "exchange",
        "two files exchanged in one step (`RENAME_EXCHANGE`)",
        _python("open('a', 'w'); open('b', 'w'); print(told(316, -100, b'a', -100, b'b', 2))"),
        WORKS,
        Seen("`EINVAL`", "EINVAL"),
        "gVisor's gofer has no such call",
    ),
    Difference(
        "holes",
        "what a file takes of the disk (`du`, `st_blocks`)",
        "truncate -s 64M sparse; du -k sparse | cut -f1",
        Seen("what it takes", "0"),
        Seen("its size", "65536"),
        "gVisor derives it from the size; the disk itself (`df`, the metrics) is counted right",
    ),
    Difference(
        "holes-made",
        "holes made in a file (`fallocate -p`)",
        "truncate -s 8K f; fallocate -p -o 0 -l 4096 f 2>/dev/null && echo works || echo refused",
        WORKS,
        Seen("refused", "refused"),
        "gVisor allocates and does nothing else",
    ),
    Difference(
        "birth-time",
        "when a file was made (`stat -c %W`)",
        "touch f; stat -c %W f",
        Seen("known", r"[1-9]\d+"),
        Seen("0: not known", "0"),
        "gVisor does not ask for it",
    ),
    Difference(
        "busy-programs",
        "writing to a program that runs",
        "cp /bin/sleep s; ./s 5 & sleep 0.5; (echo x >> s) 2>/dev/null && echo works || echo refused; kill %1",
        Seen("`ETXTBSY`", "refused"),
        Seen("works", "works"),
        "gVisor does not count who runs a file",
    ),
    Difference(
        "tmp",
        "what is in /tmp at first",
        "find /tmp -mindepth 1 -name '.*'",
        Seen("nothing", ""),
        Seen("an empty `.X11-unix`", r"/tmp/\.X11-unix"),
        "over an empty /tmp this gVisor puts a file system in memory, which the limit of the disk would not count",
    ),
    Difference(
        "no-randomness",
        "a program without random addresses (`setarch -R`)",
        "setarch -R echo works 2>/dev/null || echo refused",
        WORKS,
        Seen("`EINVAL`", "refused"),
        "gVisor's addresses are random always; a debugger warns and goes on",
    ),
    Difference(
        "niceness",
        "a higher priority (negative niceness) for root",
        "sudo nice -n -5 nice 2>/dev/null | tail -1",
        Seen("refused", "0"),
        Seen("works, among the sandbox's own processes", "-5"),
        "the host's scheduler knows the sandbox as one group in both tiers, so no neighbour loses by it",
    ),
)
"""Each line is asserted in both tiers: one that is no longer true fails."""


def table() -> str:
    """DIFFERENCES as Markdown."""
    lines = ["| what | namespaces | gVisor | why |", "|---|---|---|---|"]
    lines += [f"| {one.what} | {one.namespaces.told} | {one.gvisor.told} | {one.why} |" for one in DIFFERENCES]
    return "\n".join(lines)
