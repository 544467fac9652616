"""An environment of its own for each client version, made once and kept in a cache directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
import venv
from dataclasses import dataclass
from pathlib import Path

from matrix.versions import js_interpreter

HERE = Path(__file__).parent
UV = "uv==0.13.9"
INSTALL_S = 300
INTERPRETERS = {"2.55.0": "2.10.3"}
"""Where the resolver's choice does not fit: it passes arguments to `e2b` that this version does not have."""
_installing = threading.Lock()


class InstallFailed(Exception):
    """The registry or the installer said no; the message holds the end of what it said."""


@dataclass(frozen=True, slots=True)
class Environment:
    """`command` runs the scenario; `interpreter` is the version of the code interpreter SDK that goes with it."""

    language: str
    version: str
    interpreter: str
    command: tuple[str, ...]


def cache_dir() -> Path:
    """`ATOLL_MATRIX_CACHE`, else `$XDG_CACHE_HOME/atoll-matrix`, else `~/.cache/atoll-matrix`."""
    if chosen := os.environ.get("ATOLL_MATRIX_CACHE"):
        return Path(chosen).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "atoll-matrix"


def prepare(language: str, version: str) -> Environment:
    """Installs what is missing. Raises InstallFailed."""
    return _python(version) if language == "python" else _js(version)


def _python(version: str) -> Environment:
    place = cache_dir() / f"python-{version}"
    python = place / "bin" / "python"
    done = place / ".interpreter"
    if not done.exists():
        shutil.rmtree(place, ignore_errors=True)
        venv.create(place, with_pip=False)
        companion = "e2b-code-interpreter" + (f"=={INTERPRETERS[version]}" if version in INTERPRETERS else "")
        _run(
            [
                str(_uv()),
                "pip",
                "install",
                "--quiet",
                "--python",
                str(python),
                f"e2b=={version}",
                companion,
            ],
            {"UV_CACHE_DIR": str(cache_dir() / "uv-cache")},
        )
        code = "from importlib.metadata import version; print(version('e2b-code-interpreter'))"
        done.write_text(_run([str(python), "-c", code]).strip())
    return Environment("python", version, done.read_text(), (str(python), str(HERE / "scenario.py")))


def _uv() -> Path:
    """An installer that shares files between environments: a hundred of them take the room of a few."""
    place = cache_dir() / "uv"
    with _installing:
        if not (place / "bin" / "uv").exists():
            venv.create(place, with_pip=True)
            _run([str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", UV])
    return place / "bin" / "uv"


def _js(version: str) -> Environment:
    place = cache_dir() / f"js-{version}"
    done = place / ".interpreter"
    if not done.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        interpreter = js_interpreter(version)
        package = {
            "private": True,
            "type": "module",
            "dependencies": {"e2b": version, "@e2b/code-interpreter": interpreter},
            "overrides": {"@e2b/code-interpreter": {"e2b": version}},
        }
        (place / "package.json").write_text(json.dumps(package))
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"], cwd=place)
        done.write_text(interpreter)
    shutil.copyfile(HERE / "scenario.mjs", place / "scenario.mjs")
    return Environment("js", version, done.read_text(), ("node", str(place / "scenario.mjs")))


def _run(command: list[str], more: dict[str, str] | None = None, *, cwd: Path | None = None) -> str:
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
