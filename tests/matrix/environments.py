"""An environment of its own for each client version, made once and kept in a cache directory."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from matrix.versions import js_interpreter
from support.python_environment import cache_dir, installed_version, python_environment, run_installer

HERE = Path(__file__).parent
INTERPRETERS = {"2.55.0": "2.10.3"}
"""Where the resolver's choice does not fit: it passes arguments to `e2b` that this version does not have."""


@dataclass(frozen=True, slots=True)
class Environment:
    """`command` runs the scenario; `interpreter` is the version of the code interpreter SDK that goes with it."""

    language: str
    version: str
    interpreter: str
    command: tuple[str, ...]


def prepare(language: str, version: str) -> Environment:
    """Installs what is missing. Raises InstallFailed."""
    return _python(version) if language == "python" else _js(version)


def _python(version: str) -> Environment:
    companion = "e2b-code-interpreter" + (f"=={INTERPRETERS[version]}" if version in INTERPRETERS else "")
    python = python_environment(f"python-{version}", [f"e2b=={version}", companion], resolve=True)
    interpreter = installed_version(python, "e2b-code-interpreter")
    return Environment("python", version, interpreter, (str(python), str(HERE / "scenario.py")))


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
        run_installer(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", "--silent"], cwd=place)
        done.write_text(interpreter)
    shutil.copyfile(HERE / "scenario.mjs", place / "scenario.mjs")
    return Environment("js", version, done.read_text(), ("node", str(place / "scenario.mjs")))
