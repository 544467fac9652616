"""Python environments of their own for programs that tests run: made once each with uv, kept in a cache directory.

uv shares files between environments: a hundred of them take the room of a few. Owns making them, not what they are for.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

UV = "uv==0.13.9"
INSTALL_S = 300


class InstallFailed(Exception):
    """The registry or the installer said no; the message holds the end of what it said."""


def cache_dir() -> Path:
    """`ATOLL_TEST_CACHE`, else `$XDG_CACHE_HOME/atoll-tests`, else `~/.cache/atoll-tests`."""
    if chosen := os.environ.get("ATOLL_TEST_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll-tests"


def python_environment(name: str, requirements: Sequence[str], *, resolve: bool) -> Path:
    """The Python of an environment with these packages, and with what they require if `resolve`. Raises InstallFailed.

    Other processes that want it at the same time wait for the one that makes it.
    """
    place = cache_dir() / name
    revision = "\n".join([sys.version, *requirements])
    with locked(place):
        done = place / ".installed"
        if not done.exists() or done.read_text() != revision:
            shutil.rmtree(place, ignore_errors=True)
            venv.create(place, with_pip=False)
            install = ["pip", "install", "--quiet", "--python", str(place / "bin" / "python"), *requirements]
            command = [str(_uv()), *install, *([] if resolve else ["--no-deps"])]
            run_installer(command, {"UV_CACHE_DIR": str(cache_dir() / "uv-cache")})
            done.write_text(revision)
    return place / "bin" / "python"


def installed_version(python: Path, package: str) -> str:
    """Raises InstallFailed when it is not there."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return run_installer([str(python), "-c", code]).strip()


def run_installer(command: list[str], more: Mapping[str, str] | None = None, *, cwd: Path | None = None) -> str:
    """What the program prints. Raises InstallFailed."""
    environ = {**os.environ, **(more or {})}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=INSTALL_S, check=False, env=environ, cwd=cwd
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InstallFailed(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise InstallFailed(f"{' '.join(command[:6])} …: {done.stderr.strip()[-500:]}")
    return done.stdout


def _uv() -> Path:
    place = cache_dir() / "uv"
    with locked(place):
        if not (place / "bin" / "uv").exists():
            venv.create(place, with_pip=True)
            run_installer([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", UV])
    return place / "bin" / "uv"


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """One at a time, among threads and processes."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
