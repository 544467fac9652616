"""What of this machine the gvisor tier needs, and whether it is there. Changes nothing that stays."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

from atoll.isolation.base import BackendConfig, Finding, Verdict
from atoll.isolation.gvisor import runsc
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.disk import image as disk_image
from atoll.isolation.linux.disk import kept
from atoll.isolation.linux.sys import shared_limits, syscalls
from atoll.model.errors import BackendUnavailable

_TRIAL_WITHIN_S = 20.0
_TRY_NETWORK = (
    "import json,sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from atoll.isolation.gvisor.launch import try_network; try_network()"
)


async def examine(config: BackendConfig, cgroups: Cgroups) -> list[Finding]:
    """All findings of this tier."""
    findings = [_machine(), _user(), *_cgroups(cgroups)]
    try:
        program = await runsc.find(config.environ, config.tools_dir)
    except BackendUnavailable as error:
        return [*findings, Finding("runsc", Verdict.FAIL, error.message, error.hint)]
    findings.append(Finding("runsc", Verdict.OK, f"{program.path}, {program.version} ({program.how})"))
    if all(finding.verdict is not Verdict.FAIL for finding in findings):
        platform = config.environ.get(runsc.PLATFORM_SETTING) or runsc.DEFAULT_PLATFORM
        findings.append(await _trial(program, platform))
    findings.append(await _network())
    if not program.honours_setuid:
        findings.append(
            Finding("sudo", Verdict.OK, "this release ignores set-uid programs: `sudo` is answered by the guest")
        )
    findings.append(await asyncio.to_thread(_disk, config.run_dir))
    findings += shared_limits.findings()
    return findings


def _machine() -> Finding:
    if syscalls.MACHINE in syscalls.SUPPORTED_MACHINES:
        return Finding("machine", Verdict.OK, syscalls.MACHINE)
    known = ", ".join(sorted(syscalls.SUPPORTED_MACHINES))
    return Finding("machine", Verdict.FAIL, f"{syscalls.MACHINE} is not known", f"use one of: {known}")


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding("user", Verdict.OK, "root")
    return Finding("user", Verdict.FAIL, "the gvisor tier needs root", "start `atoll serve` as root")


def _cgroups(cgroups: Cgroups) -> list[Finding]:
    if not cgroups.v1 and cgroups.v2 is None:
        fix = "in a container: run it with a writable /sys/fs/cgroup (privileged, own cgroup namespace)"
        return [Finding("cgroups", Verdict.FAIL, "none can be written: helpers could not be kept hold of", fix)]
    findings = []
    for controller in ("memory", "cpu"):
        if controller in cgroups.limited:
            where = "version 1" if controller in cgroups.v1 else "version 2"
            beyond = "; beyond it the guest ends the largest process" if controller == "memory" else ""
            findings.append(Finding(f"limit {controller}", Verdict.OK, f"cgroup {where}{beyond}"))
        else:
            detail = "no writable cgroup controller: this limit is NOT enforced"
            findings.append(Finding(f"limit {controller}", Verdict.WARN, detail))
    findings.append(Finding("limit pids", Verdict.OK, "kept by gVisor's own kernel"))
    if cgroups.can_freeze:
        findings.append(Finding("freeze", Verdict.OK, "cgroup freezer"))
    else:
        findings.append(Finding("freeze", Verdict.WARN, "no freezer: sandboxes cannot be paused"))
    return findings


def _disk(run_dir: Path) -> Finding:
    near = next(path for path in (run_dir, *run_dir.parents) if path.is_dir())
    if not (reason := disk_image.why_not(near)):
        return Finding("limit disk", Verdict.OK, f"each sandbox has a disk of its own size; {kept.how_copied(near)}")
    return Finding(
        "limit disk",
        Verdict.WARN,
        f"a sandbox may fill the data directory, this limit is NOT enforced: {reason}",
        "apt-get install e2fsprogs; in a container: give it /dev/loop-control and loop devices",
    )


async def _network() -> Finding:
    if not (reason := await why_no_network()):
        return Finding("egress", Verdict.OK, "redirected to the gateway, by policy")
    return Finding(
        "egress",
        Verdict.WARN,
        f"sandboxes have loopback only, nothing gets out: {reason}",
        "the kernel needs nftables with nat, redirect and fib (nft_redir, nft_fib_ipv4)",
    )


async def why_no_network() -> str:
    """Tries the sandbox's network once, in a process of its own: "" where it works, else the reason."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", "-c", _TRY_NETWORK, json.dumps(sys.path),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        _, output = await asyncio.wait_for(process.communicate(), _TRIAL_WITHIN_S)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    return "" if process.returncode == 0 else output.decode(errors="replace").strip()[-300:] or "it does not work"


async def _trial(program: runsc.Runsc, platform: str) -> Finding:
    """Runs one program in a root of nothing but runsc itself, which is statically linked."""
    with tempfile.TemporaryDirectory(prefix="atoll-runsc-") as scratch:
        place = Path(scratch)
        await asyncio.to_thread(_make_trial, place, program)
        process = await asyncio.create_subprocess_exec(
            str(program.path), f"--root={place / 'state'}", f"--platform={platform}", "--network=none",
            "--ignore-cgroups", "run", f"--bundle={place}", f"trial-{os.getpid()}",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            out, _ = await asyncio.wait_for(process.communicate(), _TRIAL_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()
            detail = f"platform {platform} hangs: a trial did not end within {_TRIAL_WITHIN_S:.0f} s"
            return Finding("sandbox", Verdict.FAIL, detail, f"choose another with {runsc.PLATFORM_SETTING}")
        except BaseException:
            process.kill()
            await process.wait()
            raise
    text = out.decode(errors="replace").strip()
    if process.returncode == 0 and "runsc version" in text:
        return Finding("sandbox", Verdict.OK, f"a trial ran to its end on platform {platform}")
    words = text.splitlines()[-1][:300] if text else "without a word"
    return Finding("sandbox", Verdict.FAIL, f"a trial failed: {words}")


def _make_trial(place: Path, program: runsc.Runsc) -> None:
    place.chmod(0o755)
    (place / "root").mkdir()
    copy = place / "root" / "program"
    copy.write_bytes(program.path.read_bytes())
    copy.chmod(0o755)
    namespaces = [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount")]
    config = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 65534, "gid": 65534}, "args": ["/program", "--version"], "cwd": "/"},
        "root": {"path": str(place / "root"), "readonly": True},
        "linux": {"namespaces": namespaces},
    }
    (place / "config.json").write_text(json.dumps(config))
