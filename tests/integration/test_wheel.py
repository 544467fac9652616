"""The wheel as a user has it: built, installed into an environment of its own, away from this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest

from support.host import skip_without
from support.python_environment import InstallFailed, python_environment, run_installer
from support.server import ServerProcess

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(400)
def test_an_installed_wheel_serves_sandboxes(templates_dir: Path, tmp_path: Path) -> None:
    skip_without("namespaces")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    try:
        python = python_environment("wheel", project["dependencies"], resolve=True)
        subprocess.run([sys.executable, str(ROOT / "scripts" / "docs.py")], check=True, capture_output=True)
        build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
        run_installer(build)
    except InstallFailed as error:
        pytest.skip(f"PyPI cannot be reached: {error}")
    (wheel,) = tmp_path.glob("atoll-*.whl")
    place = tmp_path / "installed"
    run_installer([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(place), str(wheel)])

    environ = {"PYTHONPATH": str(place)}
    found = subprocess.run(
        [python, "-c", "import atoll; print(atoll.__file__)"],
        env={**os.environ, **environ}, cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert Path(found.stdout.strip()).is_relative_to(place)
    server = ServerProcess.start(
        tmp_path / "data", templates_dir=templates_dir, options=["--end-sandboxes"], environ=environ, python=python
    )
    try:
        assert httpx.get(f"{server.url}/docs/index.html").status_code == 200
        code = (
            "from e2b import Sandbox\n"
            "with Sandbox.create() as sandbox:\n"
            "    print(sandbox.commands.run('echo $((6 * 7))').stdout, end='')\n"
        )
        done = subprocess.run(
            [python, "-c", code], env={**os.environ, **environ, **server.environ}, cwd=tmp_path,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert done.stdout == "42\n", done.stderr + server.log_tail()
    finally:
        assert server.stop() == 0
