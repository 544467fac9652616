"""The first create on a machine where no template has been built yet: it is made then. Real servers, real builds."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from e2b import Sandbox, SandboxException, ServiceBusyException
from sdk_support import eventually

from support.server import ServerProcess

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="builds as root are tested as root"),
    pytest.mark.timeout(600),
]


@pytest.fixture
def templates(templates_dir: Path) -> Iterator[Path]:
    """An empty templates directory of the test's own, where templates may lie on this machine."""
    own = Path(tempfile.mkdtemp(prefix=f"{templates_dir.name}.first-", dir=templates_dir.parent))
    own.chmod(0o755)
    yield own
    assert str(own) not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(own)


@pytest.fixture
def serve(templates: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers on that directory whose creates wait a second at most."""
    started: list[ServerProcess] = []

    def start(**environ: str) -> ServerProcess:
        environ = {"ATOLL_TEMPLATE_WAIT_S": "1", **environ}
        data_dir = tmp_path / f"server-{len(started)}"
        started.append(
            ServerProcess.start(data_dir, templates_dir=templates, options=["--end-sandboxes"], environ=environ)
        )
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Where a program in the place of mmdebstrap goes, see `_replace`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    return folder / "mmdebstrap"


def _replace(program: Path, script: str) -> dict[str, str]:
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def _options(server: ServerProcess, **more: Any) -> dict[str, Any]:
    return {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url, "retries": 0, **more}


def _create(server: ServerProcess) -> Sandbox:
    """As the message tells: again until it is there."""
    while True:
        try:
            return Sandbox.create(**_options(server))
        except ServiceBusyException:
            time.sleep(0.5)


def _builds_begun(*servers: ServerProcess) -> int:
    return sum(server.log.read_text().count("template.build_begins") for server in servers)


@contextmanager
def _on_its_own(templates: Path, data_dir: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program that names no platform and brings its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "E2B_"))}
    environ = {**clean, "ATOLL_TEMPLATES_DIR": str(templates), "ATOLL_DATA_DIR": str(data_dir)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, *words], env=environ, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


RUNTIME = """
from atoll.runtime import E2BBox
with E2BBox() as box:
    print(box.execute("echo hi").output.strip())
"""


def test_a_missing_template_is_built_once_for_all_who_ask(
    templates: Path, serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    with (
        _on_its_own(templates, tmp_path / "run", "-m", "atoll", "run", "echo hi") as run,
        _on_its_own(templates, tmp_path / "runtime", "-c", RUNTIME) as runtime,
    ):
        _all_at_once([serve(), serve()])
        for process in (run, runtime):
            out, told = process.communicate(timeout=100)
            assert out == "hi\n", told
            assert "'base' is missing and is being built: " in told
    assert len(list((templates / "base" / "builds").iterdir())) == 1, "two processes built it"


def _all_at_once(servers: list[ServerProcess]) -> None:
    with pytest.raises(httpx.TimeoutException):
        Sandbox.create(**_options(servers[0], request_timeout=0.5))
    with pytest.raises(
        ServiceBusyException, match=r"'base' is missing and is being built: \d+% .* create the sandbox again"
    ):
        Sandbox.create(**_options(servers[0]))
    assert httpx.get(f"{servers[0].url}/v2/sandboxes", headers={"X-API-Key": servers[0].api_key}).json() == []
    with pytest.raises(SandboxException, match="404: template 'no-such' not found"):
        Sandbox.create("no-such", **_options(servers[0]))
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(_create, [*servers, *servers]))
    assert [one.commands.run("id -un").stdout for one in made] == ["user\n"] * 4
    assert _builds_begun(servers[0]) == 1, "who left ended the build, or two creates began it"
    for one in made:
        one.kill()


def test_a_build_that_fails_is_told_with_its_cause_and_is_tried_again(
    templates: Path, serve: Callable[..., ServerProcess], archive: Path
) -> None:
    server = serve(**_replace(archive, "echo E: the mirror is on fire; sleep 0.2; exit 3"), ATOLL_TEMPLATE_WAIT_S="50")
    for attempt in (1, 2):
        with pytest.raises(SandboxException, match="500: the template 'base' is missing and cannot be built") as caught:
            Sandbox.create(**_options(server))
        assert "the mirror is on fire" in str(caught.value)
        assert "the whole log: " in str(caught.value)
        assert _builds_begun(server) == attempt
    assert list((templates / ".building").iterdir()) == []


def test_a_build_that_fails_while_nobody_waits_is_told_to_who_comes_back(
    serve: Callable[..., ServerProcess], archive: Path, tmp_path: Path
) -> None:
    release = tmp_path / "release"
    script = f"while ! [ -e {release} ]; do sleep 0.1; done; echo E: the mirror is on fire; exit 3"
    server = serve(**_replace(archive, script))
    with pytest.raises(ServiceBusyException):
        Sandbox.create(**_options(server))
    release.touch()
    eventually(lambda: "template.build_failed" in server.log.read_text(), what="the failure", within_s=60)
    with pytest.raises(SandboxException, match="the mirror is on fire"):
        Sandbox.create(**_options(server))
    assert _builds_begun(server) == 1


def test_a_server_that_stops_ends_what_it_builds(
    templates: Path, serve: Callable[..., ServerProcess], archive: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    server = serve(**_replace(archive, f"echo $$ > {pid}; exec sleep 86311"), ATOLL_PREPARE_TEMPLATES="base")
    eventually(lambda: pid.exists() and pid.read_text().strip(), what="the build that the server began by itself")
    assert "template.prepares" in server.log.read_text()
    assert server.stop() == 0
    number = pid.read_text().strip()
    eventually(lambda: "sleep" not in _command_of(number), what="the end of the build", within_s=30)
    assert list((templates / ".building").iterdir()) == []


def _command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:
        return ""


def test_a_server_that_is_killed_ends_what_it_builds(
    serve: Callable[..., ServerProcess], archive: Path, tmp_path: Path
) -> None:
    pid = tmp_path / "pid"
    mounts = 'for a in "$@"; do case $a in */layer) mkdir -p "$a/dev"; mount -t tmpfs none "$a/dev";; esac; done'
    script = f"{mounts}; echo $$ > {pid}; exec sleep 86312"
    server = serve(**_replace(archive, script), ATOLL_PREPARE_TEMPLATES="base")
    eventually(lambda: pid.exists() and pid.read_text().strip(), what="the build that the server began by itself")
    assert "/layer/dev" in Path(f"/proc/{pid.read_text().strip()}/mountinfo").read_text()
    server.process.kill()
    eventually(lambda: "sleep" not in _command_of(pid.read_text().strip()), what="the end of the build", within_s=30)
