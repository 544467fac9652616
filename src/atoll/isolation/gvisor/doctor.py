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
from atoll.isolation.linux import findings as shared
from atoll.isolation.linux.cgroups.groups import Cgroups
from atoll.isolation.linux.sys import shared_limits
from atoll.model.errors import BackendUnavailable

_TRIAL_WITHIN_S = 20.0
_TRY_NETWORK = (
    "import json,sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from atoll.isolation.gvisor.launch import try_network; try_network()"
)


async def examine(config: BackendConfig, cgroups: Cgroups) -> list[Finding]:
    """All findings of this tier."""
    findings = [shared.machine(), _user(), *_cgroups(cgroups)]
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
    findings.append(await asyncio.to_thread(shared.disk, config.run_dir))
    findings += shared_limits.findings()
    return findings


def _user() -> Finding:
    if os.geteuid() == 0:
        return Finding("user", Verdict.OK, "root")
    return Finding("user", Verdict.FAIL, "the gvisor tier needs root", "start `atoll serve` as root")


def _cgroups(cgroups: Cgroups) -> list[Finding]:
    if not cgroups.v1 and cgroups.v2 is None:
        return [
            Finding(
                "cgroups", Verdict.FAIL, "none can be written: helpers could not be kept hold of", shared.CGROUPS_FIX
            )
        ]
    return [
        shared.limit(cgroups, "memory", more="; beyond it the guest ends the largest process"),
        shared.limit(cgroups, "cpu"),
        Finding("limit pids", Verdict.OK, "kept by gVisor's own kernel"),
        shared.freezer(cgroups),
    ]


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
    done = await shared.trial([sys.executable, "-I", "-S", "-c", _TRY_NETWORK, json.dumps(sys.path)], _TRIAL_WITHIN_S)
    return "" if done.status == 0 else done.err[-300:] or "it does not work"


async def _trial(program: runsc.Runsc, platform: str) -> Finding:
    """Runs one program in a root of nothing but runsc itself, which is statically linked."""
    with tempfile.TemporaryDirectory(prefix="atoll-runsc-") as scratch:
        place = Path(scratch)
        await asyncio.to_thread(_make_trial, place, program)
        command = [str(program.path), f"--root={place / 'state'}", f"--platform={platform}", "--network=none"]
        command += ["--ignore-cgroups", "run", f"--bundle={place}", f"trial-{os.getpid()}"]
        try:
            done = await shared.trial(command, _TRIAL_WITHIN_S)
        except TimeoutError:
            detail = f"platform {platform} hangs: a trial did not end within {_TRIAL_WITHIN_S:.0f} s"
            return Finding("sandbox", Verdict.FAIL, detail, f"choose another with {runsc.PLATFORM_SETTING}")
    text = f"{done.out}\n{done.err}".strip()
    if done.status == 0 and "runsc version" in text:
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
