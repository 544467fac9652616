"""What code in a sandbox of the namespaces tier has and lacks, by the lists of the attack suite's posture family."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from atoll.isolation.base import BackendConfig
from atoll.isolation.namespaces.handle import NamespacesHandle
from atoll.isolation.registry import load
from atoll.model.sandbox import Limits, SandboxPaths, SandboxSpec
from atoll.testing import inside
from atoll_attacks.posture import CAPABILITIES, DEVICES, MASKED_DIRECTORIES, MASKED_FILES, MOUNTS, SHOWN, mount_of
from support.host import requires

pytestmark = [requires("namespaces"), pytest.mark.parametrize("user", ["user", "root"])]

# Run by python3 inside: tries a system call by number and prints its errno.
_TRY = """
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
for line in sys.argv[1:]:
    number, *arguments = (int(part, 0) for part in line.split(","))
    result = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) for a in arguments))
    print(ctypes.get_errno() if result < 0 else 0)
"""


@pytest.fixture
async def sandbox(templates_dir: Path, tmp_path: Path) -> AsyncIterator[NamespacesHandle]:
    from atoll.images.store import TemplateStore

    layers = TemplateStore(templates_dir).find_template("base").layers
    state_dir = tmp_path / "state of a sandbox"
    state_dir.mkdir(mode=0o700)
    backend = load("namespaces")(BackendConfig(tmp_path / "run"))
    await backend.start()
    try:
        limits = Limits(cpu_count=1, memory_mib=256, pids=100)
        handle = await backend.create(SandboxSpec("posture", "base", limits), SandboxPaths(layers, state_dir))
        assert isinstance(handle, NamespacesHandle)
        try:
            yield handle
        finally:
            await handle.kill()
    finally:
        await backend.aclose()


async def _out(handle: NamespacesHandle, script: str, user: str) -> str:
    done = await inside.run(handle, script, user=user)
    assert done.code is not None, done
    return done.out


async def test_capabilities_are_the_pinned_sets(sandbox: NamespacesHandle, user: str) -> None:
    status = await _out(sandbox, "cat /proc/self/status", user)
    sets = {name: int(value, 16) for name, value in re.findall(r"^Cap(\w+):\s+(\w+)$", status, re.M)}
    own = CAPABILITIES if user == "root" else 0
    assert sets == {"Inh": 0, "Prm": own, "Eff": own, "Bnd": CAPABILITIES, "Amb": 0}


async def test_the_guest_itself_has_no_more(sandbox: NamespacesHandle, user: str) -> None:
    with open(f"/proc/{sandbox.pid}/status") as source:
        status = source.read()
    sets = {name: int(value, 16) for name, value in re.findall(r"^Cap(\w+):\s+(\w+)$", status, re.M)}
    assert sets == {"Inh": 0, "Prm": CAPABILITIES, "Eff": CAPABILITIES, "Bnd": CAPABILITIES, "Amb": 0}
    assert re.search(r"^Seccomp:\s+2$", status, re.M)


async def test_seccomp_filters_and_sudo_still_works(sandbox: NamespacesHandle, user: str) -> None:
    status = await _out(sandbox, "cat /proc/self/status", user)
    assert re.search(r"^Seccomp:\s+2$", status, re.M)
    assert re.search(r"^NoNewPrivs:\s+0$", status, re.M)
    assert (await _out(sandbox, "sudo -n id -u", user)).strip() == "0"


async def test_every_namespace_is_the_sandboxes_own(sandbox: NamespacesHandle, user: str) -> None:
    listing = await _out(sandbox, "for n in user pid mnt net ipc uts cgroup; do readlink /proc/self/ns/$n; done", user)
    own = dict(line.split(":") for line in listing.split())
    host = dict(os.readlink(f"/proc/self/ns/{name}").split(":") for name in own)
    assert len(own) == 7
    assert [name for name in own if own[name] == host[name]] == []


async def test_ids_are_a_private_range_of_the_host(sandbox: NamespacesHandle, user: str) -> None:
    inner, outer, count = (await _out(sandbox, "cat /proc/self/uid_map", user)).split()
    assert (inner, count) == ("0", "65536")
    assert int(outer) >= 524288
    assert int(outer) % 65536 == 0


async def test_a_user_process_has_three_descriptors(sandbox: NamespacesHandle, user: str) -> None:
    done = await inside.run(sandbox, "exec ls -l /proc/self/fd", user=user)
    found = dict(re.findall(r"(\d+) -> (\S+)", done.out))
    assert set(found) == {"0", "1", "2", "3"}, "3 is ls reading the directory"
    assert found["0"] in ("/dev/null",) or found["0"].startswith("pipe:")
    assert found["1"].startswith("pipe:")
    assert found["2"].startswith("pipe:")


async def test_the_mounts_are_the_pinned_ones(sandbox: NamespacesHandle, user: str) -> None:
    table = await _out(sandbox, "cat /proc/self/mountinfo", user)
    found = dict(map(mount_of, table.splitlines()))
    shown = {path: found.pop(path) for path in {f"/proc/{name}" for name in SHOWN & set(os.listdir("/proc"))}}
    assert shown == dict.fromkeys(shown, ("tmpfs", {"ro", "nosuid", "nodev", "noexec"}))
    masks = {path for path in found if path.startswith("/proc/") and path != "/proc/sys"}
    assert {path: found[path] for path in found.keys() - masks} == MOUNTS
    assert masks <= {f"/proc/{name}" for name in MASKED_FILES | MASKED_DIRECTORIES}
    for word in ("/state", "run/", "templates", "/home/", "/root/", "/tmp/pytest"):
        assert word not in table, "the mount table tells of the host"


async def test_masked_proc_shows_nothing(sandbox: NamespacesHandle, user: str) -> None:
    there = set(os.listdir("/proc"))
    read = "; ".join(f"cat /proc/{name} 2>/dev/null" for name in MASKED_FILES & there)
    listed = "; ".join(f"ls -A /proc/{name}" for name in MASKED_DIRECTORIES & there)
    assert await _out(sandbox, f"{read}; {listed}", user) == ""
    files = await _out(sandbox, "find /sys -type f -printf '%P %m\\n'", user)
    assert sorted(files.splitlines()) == [
        f"devices/system/cpu/{name} 444" for name in ("online", "possible", "present")
    ]
    assert (await inside.run(sandbox, "echo 1 > /proc/sys/kernel/printk", user=user)).code != 0


async def test_the_device_directory_holds_the_minimum(sandbox: NamespacesHandle, user: str) -> None:
    assert set((await _out(sandbox, "ls /dev", user)).split()) == DEVICES
    assert (await inside.run(sandbox, "mknod /tmp/sda b 8 0", user=user)).code != 0


async def test_nothing_is_seen_of_the_hosts_processes_and_cgroups(sandbox: NamespacesHandle, user: str) -> None:
    pids = [int(name) for name in (await _out(sandbox, "ls /proc", user)).split() if name.isdigit()]
    assert max(pids) < 1000
    groups = await _out(sandbox, "cut -d: -f3 /proc/self/cgroup", user)
    assert set(groups.split()) == {"/"}
    command_line = await _out(sandbox, "tr -d '\\0' < /proc/1/cmdline", user)
    assert command_line.strip() == "atoll-guest"


async def test_the_guest_cannot_be_looked_into_or_hurt(sandbox: NamespacesHandle, user: str) -> None:
    looks = "; ".join(
        f"cat /proc/1/{name} 2>/dev/null && echo seen {name}" for name in ("environ", "maps", "mem", "stack", "auxv")
    )
    links = "ls /proc/1/fd/ 2>/dev/null | grep -q . && echo seen fd; readlink /proc/1/exe /proc/1/cwd /proc/1/root"
    assert await _out(sandbox, f"{looks}; {links}", user) == ""
    await inside.run(sandbox, "kill -9 1; kill -TERM 1; kill -INT 1; kill -STOP 1", user=user)
    assert await inside.health(sandbox) == 204
    attach = "import ctypes; l=ctypes.CDLL(None,use_errno=True); print(l.ptrace(16,1,0,0), ctypes.get_errno())"
    assert (await _out(sandbox, f"python3 -c '{attach}'", user)).split() == ["-1", "1"]


async def test_denied_system_calls_are_denied(sandbox: NamespacesHandle, user: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    eperm, enosys, family = 1, 38, 97
    expected = {
        "165,0,0,0,0,0": eperm,  # mount
        "166,0,0": eperm,  # umount2
        "428,-100,0,1": eperm,  # open_tree
        "430,0,0": eperm,  # fsopen
        "308,0,0": eperm,  # setns
        "272,0x10000000": eperm,  # unshare user
        "272,0x80": eperm,  # unshare time
        "56,0x10000011,0,0,0,0": eperm,  # clone into a user namespace
        "56,0x40000011,0,0,0,0": eperm,  # … into a network namespace
        "435,0,0": enosys,  # clone3
        "321,0,0,0": eperm,  # bpf
        "298,0,0,0,0,0": eperm,  # perf_event_open
        "323,0": eperm,  # userfaultfd
        "425,1,0": enosys,  # io_uring_setup
        "250,0,-3,0": eperm,  # keyctl
        "248,0,0,0,0,0": eperm,  # add_key
        "175,0,0,0": eperm,  # init_module
        "246,0,0,0,0": eperm,  # kexec_load
        "169,0,0,0,0": eperm,  # reboot
        "103,3,0,0": eperm,  # syslog
        "304,0,0,0": eperm,  # open_by_handle_at
        "154,0,0,0": eperm,  # modify_ldt
        "16,0,0x5412,0": eperm,  # ioctl TIOCSTI
        "16,0,0x1_0000_5412,0": eperm,  # … with high bits that the kernel ignores
        "41,40,1,0": family,  # socket AF_VSOCK
        "41,17,3,0": family,  # socket AF_PACKET
        "41,38,5,0": family,  # socket AF_ALG
        "41,16,3,12": 93,  # netlink of netfilter: EPROTONOSUPPORT
        "41,2,3,1": eperm,  # raw socket
        "41,10,0x80003,58": eperm,  # … of IPv6, with a flag
        "41,2,1,132": 93,  # SCTP
        "41,2,5,0": eperm,  # … by its kind alone
        "41,10,2,136": 93,  # UDP-Lite
        "41,2,1,262": 93,  # MPTCP
        "301,0,0,0,0,0": eperm,  # fanotify_mark
        "303,0,0,0,0,0": enosys,  # name_to_handle_at
        "312,0,0,0,0,0": enosys,  # kcmp
        "438,0,0,0": enosys,  # pidfd_getfd
        "440,0,0,0,0,0": enosys,  # process_madvise
        "447,0": enosys,  # memfd_secret
        "457,0,0,0,0": enosys,  # statmount
        "458,0,0,0,0": enosys,  # listmount
        "467,0,0,0": enosys,  # newer than what was reviewed
        f"{0x40000000 + 39}": enosys,  # x32
    }
    arguments = " ".join(f"'{line}'" for line in expected)
    out = await _out(sandbox, f"python3 - {arguments} <<'END'\n{_TRY}\nEND", user)
    assert dict(zip(expected, map(int, out.split()), strict=True)) == expected


async def test_ordinary_work_is_not_denied(sandbox: NamespacesHandle, user: str) -> None:
    if os.uname().machine != "x86_64":
        pytest.skip("numbers of x86_64")
    fine = [
        "39",
        "56,0x11,0,0,0,0",
        "272,0",
        "41,1,1,0",
        "41,2,1,0",
        "41,10,2,0",
        "41,2,0x80802,1",
        "41,10,2,58",
        "41,2,1,6",
        "41,16,3,0",
        "135,0xffffffff",
    ]
    script = _TRY.replace("print(", "import os\n    if number == 56 and result == 0: os._exit(0)\n    print(")
    arguments = " ".join(f"'{line}'" for line in fine)
    out = await _out(sandbox, f"python3 - {arguments} <<'END'\n{script}\nEND", user)
    assert out.split() == ["0"] * len(fine)


async def test_the_network_is_loopback_and_without_a_gateway_nothing_gets_beyond(
    sandbox: NamespacesHandle, user: str
) -> None:
    interfaces = await _out(sandbox, "tail -n +3 /proc/net/dev | cut -d: -f1", user)
    assert interfaces.split() == ["lo"]
    script = """
import socket
def outcome(act):
    try:
        act()
        return "sent"
    except OSError as error:
        return type(error).__name__ + " " + str(error.errno)
def udp(family, address):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.connect((address, 443))
        s.send(b"x")
        s.settimeout(5)
        s.recv(1)
def tcp():
    with socket.create_connection(("192.0.2.1", 80), timeout=0.5) as s:
        s.recv(1)
print(outcome(lambda: udp(socket.AF_INET, "192.0.2.1")))
print(outcome(lambda: udp(socket.AF_INET6, "2001:db8::1")))
print(outcome(tcp))
"""
    done = await inside.run(sandbox, f"python3 - <<'END'\n{script}\nEND", user=user)
    # Rejected by the rule; no route; held in the redirect's queue, where nobody is.
    assert done.out.splitlines() == ["PermissionError 1", "OSError 101", "TimeoutError None"], done


async def test_the_root_file_system_behaves_like_one(sandbox: NamespacesHandle, user: str) -> None:
    script = (
        "sudo mv /usr/share /usr/share.moved && sudo mv /usr/share.moved /usr/share && sudo rm /etc/issue && "
        "sudo chown 1000:1000 /etc/hosts && stat -c '%u' /etc/hosts / /usr && test ! -e /etc/issue && "
        "sudo mkdir /etc/issue && echo all"
    )
    assert (await _out(sandbox, script, user)).split() == ["1000", "0", "0", "all"]


async def test_no_core_dump_reaches_the_host(sandbox: NamespacesHandle, user: str) -> None:
    lower = "ulimit -c 0; sudo -n sh -c 'ulimit -c 0; grep core /proc/self/limits'; grep core /proc/self/limits"
    done = await inside.run(sandbox, lower, user=user)
    assert [line.split()[4:6] for line in done.out.splitlines()] == [["1", "1"]] * 2, done
    assert done.err == "", "sudo and shells believe that it is done"
