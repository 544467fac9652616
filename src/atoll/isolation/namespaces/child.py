"""A sandbox's first process, from its fork into new namespaces until it is the guest. Runs once, never returns.

    born ── mapped ──► prepare: ids, cgroup, staged /dev /proc /sys, loopback ──► parked   (nothing of a user known yet)
    parked ── boot ──► enter: root, seccomp, bounding set; the guest's `prepare` ──► booted   (nobody's)
    booted ── go ──► assume: host name, limits, own capabilities ──► started ──► guest main()
    parked ── go ──► enter and assume at once, when nothing was made ahead

Everything before `parked` is the same for every sandbox, everything before `booted` for all of a template; both happen
ahead of need. Until `assume` the process holds capabilities in its own user namespace that no sandbox has: up to there
it runs nothing and trusts nothing of the template. After it, it can do no more than any process of the sandbox's root.
It never execs: its memory belongs to the user namespace of the host, so that not even root inside may look into it.

Randomness: Python's `random` reseeds itself in the interpreter's fork hook, and OpenSSL when it sees another process id
than before, which holds because the zygote is never pid 1 and we always are (telling it explicitly costs 2 ms).

All modules are imported by the zygote: after the change of root there is nothing to import from.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from atoll.isolation.linux.cgroups.meter import Meter
from atoll.isolation.linux.disk import mounts
from atoll.isolation.linux.net import netlink, nft
from atoll.isolation.linux.sandbox_files import write_file, write_identity
from atoll.isolation.linux.sys import caps, rootless, seccomp, syscalls
from atoll.isolation.linux.sys.fork import rewrite_command_line
from atoll.isolation.linux.sys.machine import Machine
from atoll.isolation.namespaces import egress, messages, posture
from atoll.isolation.namespaces.spawn_thread import SpawnThread
from atoll.model.sandbox import Limits, SandboxSpec

GuestMain = Callable[..., NoReturn]
"""(listener, spec), and what its module's `begin` returned, where it has one."""

_STAGES = ("/mnt", "/srv", "/opt", "/usr")
"""Where a scratch file system may hide the host's directory: any that exists, in this mount namespace only."""

_TTY_GROUP = 5

_SYSTEM = mounts.NOSUID | mounts.NODEV | mounts.NOEXEC


class SandboxInit:
    """The set-up of one sandbox, seen from inside. `control` is the line to the zygote."""

    def __init__(
        self,
        control: socket.socket,
        group: Iterable[int],
        users: Iterable[int],
        guest: GuestMain,
        programs: tuple[bytes, bytes],
        last_cap: int,
        *,
        egress: bool,
        meter: Meter,
        machine: Machine,
        rootless: bool = False,
        ahead: Callable[[Any], None] | None = None,
    ) -> None:
        self._control = control
        self._group = list(group)
        self._users = list(users)
        self._guest = guest
        self._ahead = ahead
        begin = getattr(sys.modules[guest.__module__], "begin", None)
        # A guest that has it knows of what the tier offers; any other still works, without.
        self._parts: Any = begin() if begin is not None else None
        self._programs = programs
        """The filter of the first process, and that of what it starts."""
        self._last_cap = last_cap
        self._with_egress = egress
        self._meter = meter
        self._machine = machine
        self._kept = list(meter.descriptors)
        """Descriptors that the guest goes on using."""
        self._rootless = rootless
        self._egress: list[int] = []
        self._step = "begin"
        self._stages: dict[str, float] = {}
        self._stage = self._shown = self._asked = -1

    def run(self) -> NoReturn:
        """Becomes the guest, or reports why not and ends."""
        try:
            self._prepare()
            # A server without root cannot take copies of them later.
            handed_over = self._egress if self._rootless else ()
            messages.send(self._control, {"op": "parked", "egress": self._egress}, handed_over)
            body, descriptors = self._receive_request()
            if booted := body["op"] == "boot":
                self._enter(descriptors.pop(), Limits(**body["limits"]), body)
                self._prewarm()
                messages.send(self._control, {"op": "booted"})
                body, descriptors = self._receive_request()
            self._reach("go")
            self._step = "what was asked for"
            spec = SandboxSpec.from_json(messages.unseal(descriptors.pop()))
            if not booted:
                root, *descriptors = descriptors
                count = len(body.get("mounts", ()))
                further, descriptors = descriptors[:count], descriptors[count:]
                self._enter(root, spec.limits, body, further)
                close_all_but({0, 1, 2, self._control.fileno(), *self._egress, *self._kept, *descriptors})
            log, listener = descriptors
            self._apply_identity(spec, log)
            self._reach("started")
            messages.send(self._control, {"op": "started", "stages": self._stages})
        except BaseException as error:
            with contextlib.suppress(OSError):
                messages.send(self._control, {"op": "failed", "error": f"{self._step}: {error}"})
            os._exit(1)
        self._become_guest(listener, spec)

    def _receive_request(self) -> tuple[dict[str, Any], list[int]]:
        body, descriptors = messages.receive(self._control, messages.MOST_WITH_MOUNTS)
        if body is None:
            os._exit(0)  # the zygote ended; nobody needs us
        return body, descriptors

    def _reach(self, stage: str) -> None:
        self._stages[stage] = time.monotonic()

    # -- ahead of need -------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._step = "close inherited descriptors"
        close_all_but({0, 1, 2, self._control.fileno(), *self._group, *self._users, *self._kept})
        rewrite_command_line("atoll-guest")
        syscalls.prctl(syscalls.PR_SET_NAME, b"atoll-guest")
        os.environ.pop("ATOLL_FOOTPRINT_MARK", None)
        gc.enable()
        self._step = "wait for the id maps"
        if messages.receive(self._control).body is None:
            os._exit(0)
        self._step = "become root inside"
        with contextlib.suppress(*([PermissionError] if self._rootless else [])):  # closed where there is but one id
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        os.setsid()
        os.umask(0o022)
        syscalls.join_new_session_keyring()
        resource.setrlimit(resource.RLIMIT_CORE, (posture.CORE_LIMIT, posture.CORE_LIMIT))  # the filter keeps it so
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        self._step = "join the cgroup"
        # Before the cgroup namespace is made, so that its root is this group. The first write after a quiet time waits
        # 5 to 16 ms for an RCU grace period: the reason why all this happens before somebody waits for a sandbox.
        for descriptor in self._group:
            os.write(descriptor, b"0")
            os.close(descriptor)
        self._step = "bounding set"
        caps.limit_bounding(posture.KEPT_CAPABILITIES, self._last_cap)  # the next thread, and what either starts, too
        self._step = "the thread that starts programs"
        self._starter = SpawnThread(self._enter_users_group)
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
        self._step = "stage mounts"
        mounts.make_private()
        self._stage_mounts()
        self._step = "loopback"
        netlink.loopback_up(posture.LOOPBACK_ADDRESS)
        if self._with_egress:
            self._step = "egress redirect"
            self._egress = [held.detach() for held in egress.install()]

    def _enter_users_group(self) -> None:
        """In the thread that starts programs, which from here on can do no more than they: none of this is shared."""
        for descriptor in self._users:
            os.write(descriptor, b"0")
            os.close(descriptor)
        syscalls.unshare(syscalls.CLONE_NEWCGROUP)
        if syscalls.time_namespaces_take_spawned():
            with contextlib.suppress(OSError):  # a kernel without: programs see the machine's time since boot
                syscalls.unshare(syscalls.CLONE_NEWTIME)
        self._confine(answered=True)
        caps.limit_own(posture.KEPT_CAPABILITIES)

    def _confine(self, *, answered: bool = False) -> None:
        """What the calling thread starts. It itself keeps its capabilities for now.

        `answered`: with calls that the guest answers, which can therefore not make them.
        """
        if not answered:
            seccomp.install(self._programs[0])  # while the capability for it is still held
            return
        self._asked = seccomp.listen(self._programs[1])
        self._kept.append(self._asked)

    def _stage_mounts(self) -> None:
        """Builds /dev, /proc and /sys on a scratch file system; `_enter` moves them into the root when it is known."""
        place = next(path for path in _STAGES if os.path.isdir(path) and not os.path.islink(path))
        mounts.attach_and_close(mounts.new("tmpfs", [("mode", "0755"), ("size", "1m")]), mounts.AT_FDCWD, place)
        stage = self._stage = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        for name in ("root", "dev", "proc", "sys", "empty", "shown"):
            os.mkdir(name, 0o755, dir_fd=stage)
        empty = [("mode", "0555"), ("size", "4k"), ("nr_inodes", "2")]
        mounts.attach_and_close(mounts.new("tmpfs", empty, attributes=_SYSTEM | mounts.RDONLY), stage, "empty")
        self._stage_dev(stage)
        self._stage_shown(stage)
        self._stage_proc(stage)

    def _stage_dev(self, stage: int) -> None:
        options = [("mode", "0755"), ("size", "1m"), ("nr_inodes", "1k")]
        mounts.attach_and_close(mounts.new("tmpfs", options, attributes=mounts.NOSUID | mounts.NOEXEC), stage, "dev")
        dev = os.open("dev", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=stage)
        for name in posture.DEVICES:
            self._step = f"device {name}"
            if not stat.S_ISCHR(os.stat(f"/dev/{name}").st_mode):
                raise OSError(f"/dev/{name} of the host is not a device")
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666, dir_fd=dev))
            mounts.attach_and_close(mounts.clone(f"/dev/{name}"), dev, name)
        for name, target in posture.DEVICE_LINKS.items():
            os.symlink(target, name, dir_fd=dev)
        os.mkdir("shm", 0o755, dir_fd=dev)
        os.mkdir("pts", 0o755, dir_fd=dev)
        self._step = "pseudo terminals"
        tty = str(_TTY_GROUP if rootless.ids_here() > _TTY_GROUP else 0)
        most = str(posture.TERMINALS)
        terminals = [("ptmxmode", "0666"), ("mode", "0620"), ("gid", tty), ("max", most)]
        mounts.attach_and_close(mounts.new("devpts", terminals, attributes=mounts.NOSUID | mounts.NOEXEC), dev, "pts")
        os.close(dev)

    def _stage_shown(self, stage: int) -> None:
        """The files, empty, in which the guest will show the sandbox's machine; from here on only it can write them."""
        self._step = "files that show the machine"
        shown = self._shown = os.open("shown", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=stage)
        self._kept.append(shown)
        for name in posture.SHOWN_PROC_FILES:
            descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444, dir_fd=shown)
            if name == "cgroups":
                os.write(descriptor, self._machine.controllers.encode())
            os.close(descriptor)
        place = ""
        for name in ("sys", "devices", "system", "cpu"):
            place = f"{place}{name}/"
            os.mkdir(place, 0o755, dir_fd=shown)
        os.close(os.open(f"{place}online", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o444, dir_fd=shown))
        for name in ("possible", "present"):
            os.link(f"{place}online", f"{place}{name}", src_dir_fd=shown, dst_dir_fd=shown)
        # Nothing else in /sys: the real one shows the host's hardware, and nothing that agents run needs it.
        read_only = mounts.clone("sys", directory=shown, attributes=_SYSTEM | mounts.RDONLY)
        mounts.attach_and_close(read_only, stage, "sys")

    def _stage_proc(self, stage: int) -> None:
        self._step = "proc"
        mounts.attach_and_close(mounts.new("proc", attributes=_SYSTEM), stage, "proc")
        proc = os.open("proc", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=stage)
        with contextlib.suppress(OSError):  # ping by an ordinary user
            group_range = os.open("sys/net/ipv4/ping_group_range", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc)
            with os.fdopen(group_range, "wb", buffering=0) as setting:
                setting.write(b"0 65535")
        with contextlib.suppress(OSError):  # a kernel without connection tracking
            nft.forget_soon(os.open("sys/net/netfilter", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=proc))
        for name in posture.MASKED_PROC_FILES:
            if _exists(proc, name):
                mounts.attach_and_close(mounts.clone("dev/null", directory=stage), proc, name)
        for name in posture.MASKED_PROC_DIRECTORIES:
            if _exists(proc, name):
                mounts.attach_and_close(mounts.clone("empty", directory=stage), proc, name)
        for name in posture.SHOWN_PROC_FILES:
            if _exists(proc, name):
                shown = mounts.clone(name, directory=self._shown, attributes=_SYSTEM | mounts.RDONLY)
                mounts.attach_and_close(shown, proc, name)
        for name in posture.READ_ONLY_PROC:
            read_only = mounts.clone(name, directory=proc, attributes=_SYSTEM | mounts.RDONLY)
            mounts.attach_and_close(read_only, proc, name)
        os.close(proc)

    # -- a template's root ---------------------------------------------------------------------------------------------

    def _enter(self, mount: int, limits: Limits, word: Mapping[str, Any], further: Sequence[int] = ()) -> None:
        """The root becomes this process's, and the wall around whatever it may start stands."""
        self._show_machine(limits, word["processors"], word["boot_s"])
        self._step = "root file system"
        stage = self._stage
        mounts.attach_and_close(mount, stage, "root")
        root = os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=stage)
        self._mount_shared_memory(stage, limits.memory_mib)
        for name in ("dev", "proc", "sys"):
            self._step = f"/{name} of the template"
            _ensure_directory(root, name, 0o755)
            mounts.move(stage, name, root, name)
        _ensure_directory(root, "tmp", 0o1777)
        self._step = "change root"
        mounts.enter_root(root)
        for one, path in zip(further, word.get("mounts", ()), strict=True):
            self._step = f"the mount at {path}"
            _ensure_place(path, stat.S_ISDIR(os.fstat(one).st_mode))
            mounts.attach_and_close(one, mounts.AT_FDCWD, path)
        self._reach("root")
        self._step = "filter"
        self._confine()

    def _show_machine(self, limits: Limits, processors: Sequence[int], boot_s: int) -> None:
        """Programs run on these processors, and see a machine of that size."""
        self._step = "what is seen of the machine"
        self._programs_start_there()
        if self._parts is not None:
            machine = {"hardware": self._machine, "memory": self._meter.memory, "cpu": self._meter.cpu}
            self._parts.show_machine(self._shown, limits, processors, **machine, boot_s=boot_s, asked=self._asked)

    def _prewarm(self) -> None:
        """The guest makes what does not depend on whose it will be."""
        self._step = "the guest's preparations"
        close_all_but({0, 1, 2, self._control.fileno(), *self._egress, *self._kept})
        # For now: writing over what is there is quick, making a file or taking it out of the template is not.
        write_etc("localhost")
        write_identity("", "")
        if self._ahead is not None:
            self._ahead(self._parts)

    # -- on demand -----------------------------------------------------------------------------------------------------

    def _apply_identity(self, spec: SandboxSpec, log: int) -> None:
        """From nobody's to somebody's. Afterwards there is no way back to any right that was given up."""
        self._step = "host name"
        socket.sethostname(spec.sandbox_id)
        self._step = "/etc and /run of the sandbox"
        write_etc(spec.sandbox_id)
        write_identity(spec.sandbox_id, spec.template_id)
        self._step = "descriptors"
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for source, target in ((null, 0), (log, 1), (log, 2)):
            os.dup2(source, target, inheritable=True)
        os.close(null)
        os.close(log)
        self._step = "limits"
        set_resource_limits(spec.limits.pids)
        self._step = "capabilities"
        caps.limit_own(posture.KEPT_CAPABILITIES)
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
        if spec.no_new_privileges:
            self._step = "no new privileges"
            for run in (self._starter.run, lambda work: work()):  # it belongs to a thread, and what that starts
                run(lambda: syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1))

    @staticmethod
    def _mount_shared_memory(stage: int, memory_mib: int) -> None:
        # Half of the sandbox's memory, like a machine of that size; browsers fail with Docker's 64 MB.
        options = [("mode", "1777"), ("size", f"{max(1, memory_mib // 2)}m")]
        shared = mounts.new("tmpfs", options, attributes=mounts.NOSUID | mounts.NODEV)
        mounts.attach_and_close(shared, stage, "dev/shm")

    def _programs_start_there(self) -> None:
        if self._parts is not None:
            self._parts.start_in = self._starter.run

    def _become_guest(self, listener_descriptor: int, spec: SandboxSpec) -> NoReturn:
        self._control.close()
        try:
            self._guest(socket.socket(fileno=listener_descriptor), spec, *([self._parts] if self._parts else []))
        finally:
            os._exit(1)  # whatever a guest does: never back into the zygote's loop, of which this is a fork


def close_all_but(keep: set[int]) -> None:
    """Closes every other descriptor, known to Python or not."""
    start = 0
    for descriptor in [*sorted(keep), 0x7FFFFFFF]:
        if descriptor > start:
            # Not os.closerange: where the interpreter was built without close_range it would count to two billion.
            syscalls.call("close_range", start, descriptor - 1, 0)
        start = descriptor + 1


def set_resource_limits(pids: int) -> None:
    """A sensible number of files, and for each user fewer processes than the sandbox may have."""
    most_each = posture.processes_of_a_user(pids)
    resource.setrlimit(resource.RLIMIT_NPROC, (most_each, most_each))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = posture.OPEN_FILES
    if most != resource.RLIM_INFINITY:
        hard = min(hard, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, hard), hard))


def write_etc(hostname: str) -> None:
    """Name and resolver of this sandbox, as ordinary files (bind mounts could not be replaced by rename)."""
    hosts = (
        f"127.0.0.1\tlocalhost {hostname}\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"
    )
    resolver = f"nameserver {posture.NAMESERVER}\noptions timeout:2 attempts:2\n"
    for name, text in (("hosts", hosts), ("hostname", hostname + "\n"), ("resolv.conf", resolver)):
        write_file(f"/etc/{name}", text.encode())


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except OSError:
        return False
    return True


def _ensure_place(path: str, is_directory: bool) -> None:
    """Something that can be mounted on."""
    os.makedirs(path if is_directory else os.path.dirname(path), exist_ok=True)
    if not is_directory and not os.path.lexists(path):
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))


def _ensure_directory(parent: int, name: str, mode: int) -> None:
    """A mount point in the root: made if absent; a symbolic link or a file in its place is an error of the template."""
    try:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise NotADirectoryError(f"/{name} of the template is not a directory")
    except FileNotFoundError:
        os.mkdir(name, 0o755, dir_fd=parent)
        os.chmod(name, mode, dir_fd=parent)
