"""What programs in a sandbox see of themselves and of the machine is the sandbox's, in every tier."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from typing import Any

import pytest
from e2b import Sandbox
from e2b_code_interpreter import Sandbox as CodeSandbox
from sdk_support import eventually

MEMORY_MIB = 512
PROCESSORS = 1
VARIABLES = "E2B_SANDBOX", "E2B_SANDBOX_ID", "E2B_TEMPLATE_ID"


@pytest.fixture(scope="module")
def sandbox(server: Any, interpreter_template: None) -> Iterator[CodeSandbox]:
    """One for all that change nothing."""
    size = {"atoll.memory": str(MEMORY_MIB), "atoll.cpu": str(PROCESSORS)}
    made = CodeSandbox.create(timeout=600, metadata=size)
    yield made
    made.kill()


def test_commands_terminals_and_cells_know_their_sandbox(sandbox: CodeSandbox) -> None:
    ours = f"true {sandbox.sandbox_id} {sandbox.get_info().template_id}"
    words = " ".join(f"${name}" for name in VARIABLES)
    assert sandbox.commands.run(f"echo {words}").stdout.strip() == ours
    cell = sandbox.run_code(f"import os; print(*(os.environ[name] for name in {VARIABLES}))")
    assert "".join(cell.logs.stdout).strip() == ours
    heard: list[bytes] = []
    terminal = sandbox.pty.create(size=_size(), timeout=60)
    sandbox.pty.send_stdin(terminal.pid, f"echo {words}; exit\n".encode())
    terminal.wait(on_pty=heard.append)
    assert ours.encode() in b"".join(heard)


def test_files_say_the_same_as_the_variables(sandbox: CodeSandbox) -> None:
    for name in VARIABLES:
        assert sandbox.files.read(f"/run/e2b/.{name}") == sandbox.commands.run(f'printf %s "${name}"').stdout


def test_variables_of_the_user_come_before_the_sandboxes_own(create: Any) -> None:
    sandbox = create(timeout=120, envs={"E2B_TEMPLATE_ID": "mine"})
    assert sandbox.commands.run("echo $E2B_TEMPLATE_ID $E2B_SANDBOX").stdout.split() == ["mine", "true"]
    assert sandbox.commands.run("echo $E2B_SANDBOX", envs={"E2B_SANDBOX": "no"}).stdout.strip() == "no"


# -- the machine -------------------------------------------------------------------------------------------------------


def _python(sandbox: Sandbox, source: str, user: str = "user") -> Any:
    """What `source` prints, as JSON."""
    sandbox.files.write("/tmp/look.py", source)
    return json.loads(sandbox.commands.run("python3 /tmp/look.py", user=user, timeout=120).stdout)


def _meminfo(sandbox: Sandbox) -> dict[str, int]:
    """Sizes in KiB."""
    rows = sandbox.commands.run("cat /proc/meminfo").stdout.splitlines()
    return {row.split(":")[0]: int(row.split()[1]) for row in rows}


def test_memory_is_the_limit(sandbox: CodeSandbox) -> None:
    assert _meminfo(sandbox)["MemTotal"] == MEMORY_MIB << 10
    assert sandbox.commands.run("free -m | awk '/Mem:/{print $2}'").stdout.strip() == str(MEMORY_MIB)
    assert sandbox.commands.run("grep -c . /proc/swaps 2>/dev/null || echo 1").stdout.strip() == "1", "no swap"


@pytest.mark.parametrize("user", ["user", "root"])
def test_system_calls_say_the_same_as_the_files(sandbox: CodeSandbox, user: str) -> None:
    source = """
import ctypes, json, os, struct
libc, place = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(112)
assert libc.sysinfo(place) == 0
up, load, _, _, total, free, shared, cache, swap, _, processes = struct.unpack_from("=q3Q6QH", place)
pages = [os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") >> 20 for name in ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")]
lost = libc.sysinfo(ctypes.c_void_p(16)), ctypes.get_errno()
libc.mmap.restype = ctypes.c_void_p
read_only = libc.mmap(None, ctypes.c_size_t(4096), 1, 0x22, -1, ctypes.c_long(0))
closed = libc.sysinfo(ctypes.c_void_p(read_only)), ctypes.get_errno()
right = [0 < free < total, swap == 0, processes < 100, pages[1] < pages[0]]
print(json.dumps([total >> 20, pages[0], right, lost, closed, up]))
"""
    *found, up = _python(sandbox, source, user)
    assert found == [MEMORY_MIB, MEMORY_MIB, [True] * 4, [-1, errno.EFAULT], [-1, errno.EFAULT]]
    with open("/proc/uptime") as uptime:
        assert up < float(uptime.read().split()[0])


def test_many_ask_at_once_and_each_is_answered(sandbox: CodeSandbox) -> None:
    source = """
import concurrent.futures, json, os
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    found = set(pool.map(lambda _: os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20, range(500)))
print(json.dumps(list(found)))
"""
    assert _python(sandbox, source) == [MEMORY_MIB]


def test_processors_are_the_limit_however_one_asks(sandbox: CodeSandbox) -> None:
    source = """
import json, os
read = lambda path: open(path).read()
lists = [read("/sys/devices/system/cpu/" + name).strip() for name in ("online", "possible", "present")]
rows = [row for row in read("/proc/stat").splitlines() if row.startswith("cpu")]
own = [f"cpu{number}" for number in sorted(os.sched_getaffinity(0))]
described = read("/proc/cpuinfo").count("processor\\t")
print(json.dumps([os.cpu_count(), len(own), os.sysconf("SC_NPROCESSORS_CONF"), described,
                  [row.split()[0] for row in rows] == ["cpu", *own], lists == [own[0][3:]] * 3]))
"""
    assert _python(sandbox, source) == [PROCESSORS] * 4 + [True, True]
    assert sandbox.commands.run("nproc; nproc --all").stdout.split() == [str(PROCESSORS)] * 2


def test_other_languages_see_the_same(sandbox: CodeSandbox) -> None:
    script = "const os = require('os'); console.log(os.cpus().length, os.totalmem() / 2**20, os.loadavg().length)"
    sandbox.files.write("/tmp/look.js", script)
    assert sandbox.commands.run("node /tmp/look.js", timeout=120).stdout.split() == [
        str(PROCESSORS),
        str(MEMORY_MIB),
        "3",
    ]
    cell = sandbox.run_code("import os; print(os.cpu_count(), os.sysconf('SC_PHYS_PAGES') * 4096 >> 20)")
    assert "".join(cell.logs.stdout).split() == [str(PROCESSORS), str(MEMORY_MIB)]


def test_use_is_seen_while_programs_work(sandbox: CodeSandbox) -> None:
    before = _meminfo(sandbox)["MemAvailable"]
    holding = sandbox.commands.run(
        "exec python3 -c 'x = bytearray(150 << 20); end = 0\nwhile True: end += 1'", background=True, timeout=120
    )
    try:
        eventually(
            lambda: before - _meminfo(sandbox)["MemAvailable"] > 100 << 10, what="the memory that it holds is seen"
        )
        eventually(
            lambda: float(sandbox.commands.run("cat /proc/loadavg").stdout.split()[0]) > 0.05, what="its load is seen"
        )
        first, second = (
            [int(one) for one in sandbox.commands.run("grep '^cpu ' /proc/stat; sleep 2.5").stdout.split()[1:5]]
            for _ in range(2)
        )
        assert sum(second) > sum(first)
        assert second[0] > first[0]
    finally:
        holding.kill()
    eventually(lambda: before - _meminfo(sandbox)["MemAvailable"] < 50 << 10, what="it is seen that it was given back")


def test_time_since_boot_is_the_sandboxes_and_processes_fit_in(sandbox: CodeSandbox) -> None:
    source = """
import json, os, time
up = float(open("/proc/uptime").read().split()[0])
boot = next(int(row.split()[1]) for row in open("/proc/stat") if row.startswith("btime"))
began = int(open("/proc/self/stat").read().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
print(json.dumps([up, time.clock_gettime(time.CLOCK_BOOTTIME), time.time() - boot, began]))
"""
    up, clock, since, began = _python(sandbox, source)
    with open("/proc/uptime") as uptime:
        assert 0 < up < float(uptime.read().split()[0])
    assert max(clock, since) - up < 15
    assert 0 <= began <= up + 1


def test_nobody_inside_can_change_what_is_shown(sandbox: CodeSandbox) -> None:
    names = "meminfo cpuinfo stat loadavg"
    places = " ".join([*(f"/proc/{name}" for name in names.split()), "/sys/devices/system/cpu/online"])
    tries = "chmod 666 $f; (echo 9 > $f) && echo wrote $f; umount $f && echo uncovered $f"
    tries += "; rm -f $f; test -s $f || echo removed $f"
    script = f"for f in {places}; do {tries}; done 2>/dev/null; true"
    mounts = sandbox.commands.run("cat /proc/mounts").stdout
    for user in ("user", "root"):
        assert sandbox.commands.run(script, user=user).stdout == ""
    assert sandbox.commands.run("cat /proc/mounts").stdout == mounts
    assert _meminfo(sandbox)["MemTotal"] == MEMORY_MIB << 10


def _size() -> Any:
    from e2b.sandbox.commands.command_handle import PtySize

    return PtySize(rows=24, cols=200)
