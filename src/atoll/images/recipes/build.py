"""Carries out one recipe: Debian tree or overlay layer, then the recipe's script. Owns the programs it starts.

    bottom layer   mmdebstrap ──► layer ──► script in the tree
    upper layer    overlay(parents, layer) ──► script in the tree ──► overlay's private marks removed

Everything is written below the directories that the caller passes; the caller removes them when this raises.
As root the files belong to real uid 0. As an ordinary user everything happens in a user namespace with the user's
subordinate ids.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from atoll.images.recipes import debian, pip_settings
from atoll.images.recipes.pip_settings import INSIDE
from atoll.images.recipes.recipe import SCRIPTS, OnProgress, Progress, Recipe
from atoll.model.errors import BackendUnavailable, BuildFailed

MOUNT_TABLE = Path("/proc/self/mountinfo")

_TAIL_LINES = 15
_GRACE_S = 20.0

# What mmdebstrap says, in order, with the share of the whole build that is behind it by then (measured on two cores).
_MMDEBSTRAP_STAGES = (
    ("running apt-get update", 0.02, "reading Debian's package lists"),
    ("downloading packages", 0.08, "downloading packages"),
    ("extracting archives", 0.20, "unpacking the essential system"),
    ("installing essential packages", 0.28, "installing the essential system"),
    ("installing remaining packages", 0.42, "installing tools"),
    ("cleaning package lists", 0.93, "cleaning up"),
)
_PIP_STAGES = (
    ("Collecting ", 0.05, 0.55),
    ("Installing collected packages", 0.6, 0.6),
    ("Successfully installed", 0.92, 0.92),
)
_APT_STAGES = (("Get:", 0.05, 0.4), ("Unpacking ", 0.4, 0.7), ("Setting up ", 0.7, 0.95))


@dataclass(frozen=True, slots=True)
class Workplace:
    """Where a build may write: `layer` becomes the template's layer, `scratch` is thrown away, `log` stays."""

    layer: Path
    scratch: Path
    log: Path


def build_layer(recipe: Recipe, parents: Sequence[Path], place: Workplace, on_progress: OnProgress) -> None:
    """Fills `place.layer`. `parents` are the layers below it, top first.

    Raises BuildFailed (with the log's tail), BackendUnavailable (a program or right is missing, with what to do).
    """
    rootless = os.geteuid() != 0
    if rootless:
        _check_rootless()
    place.scratch.mkdir(parents=True, exist_ok=True)

    def report(stage: str, fraction: float, message: str) -> None:
        on_progress(Progress(recipe.name, stage, fraction, message))

    with place.log.open("ab", buffering=0) as log:
        if recipe.parent is None:
            _debian_tree(recipe, place, log, report, rootless=rootless)
            report("configure", 0.95, "setting up user, shell and Python")
        else:
            place.layer.mkdir()
            report("packages", 0.02, "resolving packages")
        _run_script(recipe, parents, place, log, report, rootless=rootless)
        report("clean", 0.97, "cleaning up")
        if recipe.parent is None:
            _neutral_tree(place.layer, rootless=rootless)
        else:
            _strip_overlay_marks(place.layer, parents)


def remove_tree(path: Path) -> None:
    """Removes what a build wrote, also where it belongs to subordinate ids. Never crosses into a mount."""
    if not path.exists():
        return
    resolved = f"{path.resolve()}/"
    mounted = [line.split()[4] for line in MOUNT_TABLE.read_text().splitlines()]
    if busy := [point for point in mounted if f"{point}/".startswith(resolved)]:
        raise BuildFailed(f"{path} cannot be removed: {busy[0]} is mounted", hint=f"run: umount -R {busy[0]}")
    prefix = _user_namespace() if os.geteuid() != 0 else []
    # By `rm`: what sandboxes have written may be deeper than Python's own goes.
    done = subprocess.run([*prefix, "rm", "-rf", "--", str(path)], capture_output=True, text=True, check=False)
    if done.returncode != 0 and not prefix:
        raise OSError(f"{path} cannot be removed: {done.stderr.strip()[-300:]}")


Report = Callable[[str, float, str], None]


def _debian_tree(recipe: Recipe, place: Workplace, log: IO[bytes], report: Report, *, rootless: bool) -> None:
    program = debian.ensure_mmdebstrap()
    archive = debian.host_archive()
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    target = str(place.layer) if not rootless else "-"
    command = debian.mmdebstrap_command(
        program,
        archive,
        recipe.apt_packages,
        place.scratch / "debian.sources",
        debian.passed_on_settings(dump),
        target=target,
        rootless=rootless,
    )

    def on_line(line: str) -> None:
        for mark, fraction, message in _MMDEBSTRAP_STAGES:
            if mark in line:
                report("debian", fraction, message)

    report("debian", 0.01, f"making a Debian {archive.suite} tree")
    if not rootless:
        # What it mounts in the tree goes with it, however it ends: a mount that stays would keep the tree for ever.
        command = ["unshare", "--mount", "--propagation", "private", "--", *command]
        _run(command, log, on_line, what=f"building {recipe.name!r}: mmdebstrap", log_path=place.log)
        return
    # A directory written by mmdebstrap --mode=unshare would need every parent to be open to the subordinate ids: go
    # by tar.
    place.layer.mkdir()
    # Device nodes cannot be made in a user namespace, and a sandbox has its own.
    tar = ["tar", "-x", "--numeric-owner", "--xattrs", "-p", "--exclude=./dev/*", "-C", str(place.layer), "-f", "-"]
    unpack = [*_user_namespace(), *tar]
    piped = ["bash", "-c", f"set -o pipefail; {shlex.join(command)} | {shlex.join(unpack)}"]
    _run(piped, log, on_line, what=f"building {recipe.name!r}: mmdebstrap", log_path=place.log)


def _run_script(
    recipe: Recipe, parents: Sequence[Path], place: Workplace, log: IO[bytes], report: Report, *, rootless: bool
) -> None:
    inputs = place.scratch / "inputs"
    environ = _script_inputs(recipe, inputs)
    namespaces = ["unshare", "--mount", "--pid", "--ipc", "--uts", "--fork", "--kill-child", "--propagation", "private"]
    if rootless:
        namespaces += ["--user", "--map-auto", "--map-root-user"]
    command = [*namespaces, "sh", str(SCRIPTS / "tree.sh")]
    if recipe.parent is None:
        command += [str(place.layer), str(inputs)]
    else:
        merged, work = place.scratch / "merged", place.scratch / "work"
        merged.mkdir()
        work.mkdir()
        command += [str(merged), str(inputs), ":".join(map(str, parents)), str(place.layer), str(work)]
    stages = _PIP_STAGES if recipe.pip_packages else _APT_STAGES
    seen = 0

    def on_line(line: str) -> None:
        nonlocal seen
        for mark, low, high in stages:
            if line.startswith(mark):
                # How many packages there will be is not known while they are collected: approach `high` and never
                # reach it.
                seen += 1
                report("packages", low + (high - low) * (1 - 1 / (1 + seen / 12)), line.strip()[:60])

    what = f"building {recipe.name!r}: {recipe.script}"
    # `unshare` ignores TERM; killed, it takes the whole pid namespace with it, and with that every mount.
    _run(command, log, on_line, what=what, log_path=place.log, environ=environ, end_with=signal.SIGKILL)


def _script_inputs(recipe: Recipe, inputs: Path) -> dict[str, str]:
    """Writes what the script sees as /run/build; returns its whole environment."""
    inputs.mkdir(mode=0o700)
    (inputs / "script.sh").write_text(recipe.script_text())
    for program in recipe.programs:
        shutil.copy(SCRIPTS / program, inputs / program)
    environ = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PIP_PACKAGES": ""}
    for name in ("resolv.conf", "hosts"):
        with suppress(OSError):
            shutil.copy(Path("/etc") / name, inputs / name)
    if recipe.pip_packages:
        pip = pip_settings.host_settings()
        (inputs / "pip.conf").write_text(pip.config)
        for name, source in pip.copies.items():
            shutil.copy(source, inputs / name)
        (inputs / "binds").write_text("".join(f"{name}\t{source}\n" for name, source in pip.binds.items()))
        environ |= pip.environ
        environ |= {"PIP_CONFIG_FILE": "/run/build/pip.conf", "PIP_PACKAGES": "\n".join(recipe.pip_packages)}
    if recipe.parent is not None and recipe.apt_packages:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
        settings = debian.settings_inside(debian.host_archive(), debian.passed_on_settings(dump), INSIDE)
        for name, text in settings.texts.items():
            (inputs / name).write_text(text)
        for name, source in settings.copies.items():
            shutil.copy(source, inputs / name)
        environ |= {"APT_CONFIG": str(INSIDE / "apt.conf"), "APT_PACKAGES": "\n".join(recipe.apt_packages)}
    return environ


def _neutral_tree(layer: Path, *, rootless: bool) -> None:
    """Nothing of the machine that built the tree; no device nodes (a sandbox makes its own)."""
    script = r"""
    cd "$1"
    rm -rf dev/* run/* tmp/*
    printf 'sandbox\n' >etc/hostname
    printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' >etc/hosts
    printf 'nameserver 8.8.8.8\n' >etc/resolv.conf
    chmod 0644 etc/hostname etc/hosts etc/resolv.conf
    """
    prefix = _user_namespace() if rootless else []
    subprocess.run([*prefix, "sh", "-euc", script, "sh", str(layer)], check=True)


def _strip_overlay_marks(layer: Path, parents: Sequence[Path]) -> None:
    """Removes overlayfs' notes from a layer that is to be used below another mount.

    `origin` and the like point at inodes of this mount. `opaque` is set on every new directory; it is kept only where
    it hides something of a parent.
    """
    for directory, names, files in os.walk(layer):
        for path in (os.path.join(directory, name) for name in (*names, *files)):
            if os.path.islink(path):
                continue
            for mark in os.listxattr(path, follow_symlinks=False):
                kind, _, note = mark.partition(".overlay.")
                if kind not in ("trusted", "user") or not note:
                    continue
                inside = os.path.relpath(path, layer)
                if note == "opaque" and any((parent / inside).is_dir() for parent in parents):
                    continue
                with suppress(OSError):
                    os.removexattr(path, mark, follow_symlinks=False)


def _user_namespace() -> list[str]:
    return ["unshare", "--user", "--map-auto", "--map-root-user", "--"]


def _check_rootless() -> None:
    probe = subprocess.run([*_user_namespace(), "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        raise BackendUnavailable(
            "building a template as an ordinary user needs user namespaces and subordinate ids: "
            + probe.stderr.strip()[-200:],
            hint="run as root, or: sudo apt-get install -y uidmap && sudo usermod --add-subuids 100000-165535 "
            "--add-subgids 100000-165535 $USER",
        )


def _run(
    command: list[str],
    log: IO[bytes],
    on_line: Callable[[str], None],
    *,
    what: str,
    log_path: Path,
    environ: Mapping[str, str] | None = None,
    end_with: signal.Signals = signal.SIGTERM,
) -> None:
    """Runs to the end, every line to the log and to `on_line`; on any error it is ended. Raises BuildFailed."""
    log.write(f"+ {shlex.join(command)}\n".encode())
    # When this process is killed outright nobody else would end the program: the kernel does.
    guarded = ["setpriv", "--pdeathsig", end_with.name.removeprefix("SIG"), "--", *command]
    with _ended_on_error(
        subprocess.Popen(
            guarded,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(environ) if environ is not None else None,
            cwd="/",
            start_new_session=True,
        ),
        end_with,
    ) as process:
        assert process.stdout is not None
        for raw in process.stdout:
            log.write(raw)
            on_line(raw.decode("utf-8", "replace"))
        code = process.wait()
    if code != 0:
        raise BuildFailed(f"{what} failed with exit code {code}:\n{_tail(log_path)}", hint=f"the whole log: {log_path}")


@contextmanager
def _ended_on_error(process: subprocess.Popen[bytes], end_with: signal.Signals) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    except BaseException:
        # mmdebstrap unmounts on TERM; what outlives the grace is killed with its session.
        for number in (end_with, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
                break
        raise
    finally:
        if process.stdout is not None:
            process.stdout.close()


def _tail(path: Path) -> str:
    with path.open("rb") as log:
        log.seek(max(0, path.stat().st_size - 8192))
        lines = log.read().decode("utf-8", "replace").splitlines()
    readable = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines if line.strip()]
    return "\n".join(readable[-_TAIL_LINES:])
