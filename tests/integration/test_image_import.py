"""Images of a registry and of archives become templates: by the published SDK against a real registry and real servers.

The registry is Debian's, on an address of this machine; every image is made by the test.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
from e2b import BuildException, LogEntry, PtySize, Sandbox, Template
from sdk_support import eventually

from support.host import fault
from support.images import (
    ARCHITECTURE,
    BUSYBOX,
    Registry,
    busybox_layer,
    layer,
    member,
    own_address,
    registry,
    registry_program,
    write_layout,
)
from support.lying_registry import PASSWORD, USER, lying_registry
from support.tiers import one_tier

NEEDS = [text for need in ("program:skopeo", "program:zstd") if (text := fault(need))]
NEEDS += [] if own_address() else ["this machine has no address besides loopback"]
NEEDS += [] if Path("/bin/busybox").exists() else ["the package busybox-static is not installed"]
pytestmark = [pytest.mark.timeout(300), pytest.mark.skipif(bool(NEEDS), reason="; ".join(NEEDS))]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if registry_program() is None:
        pytest.skip("Debian's package docker-registry cannot be had here")
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture
def name() -> str:
    return f"i{uuid4().hex[:12]}"


def client(server: Any) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"X-API-Key": server.api_key}, timeout=30)


def build(template: Any, name: str, **options: Any) -> list[str]:
    """What its log says."""
    said: list[str] = []

    def take(entry: LogEntry) -> None:
        said.append(entry.message)

    Template.build(template, name, on_build_logs=take, **options)
    return said


def musl_layer(directory: Path) -> bytes:
    """A program that needs musl's loader, and that; b"" where it cannot be compiled."""
    loader = Path(f"/lib/ld-musl-{'x86_64' if ARCHITECTURE == 'amd64' else 'aarch64'}.so.1")
    if shutil.which("musl-gcc") is None or not loader.exists():
        return b""
    source = directory / "hello.c"
    source.write_text('#include <stdio.h>\nint main(void) { puts("hello from musl"); return 0; }\n')
    subprocess.run(["musl-gcc", "-o", str(directory / "hello"), str(source)], check=True)
    return layer(
        member("lib/"),
        member(str(loader).lstrip("/"), loader.read_bytes(), mode=0o755),
        member("usr/bin/hello", (directory / "hello").read_bytes(), mode=0o755),
    )


def test_an_image_without_bash_users_or_python_is_a_template_with_its_layers_and_settings(
    server: Any, store: Registry, name: str, tmp_path: Path, create: Callable[..., Sandbox]
) -> None:
    bottom = busybox_layer("busybox", "sh", "cat", "ls", "id", "env")
    files = layer(
        member("etc/"),
        member("etc/profile", 'PATH=/bin\n[ "$(id -u)" -eq 0 ] && ROOT=1\n'),
        member("srv/gone", "gone"),
        member("srv/kept", "kept", uid=7, gid=8, mode=0o640),
        member("srv/dir/old", "old"),
        member("usr/lib/"),
        member("lib64", link="usr/lib"),
    )
    above = layer(
        member("srv/.wh.gone"),
        member("srv/dir/.wh..wh..opq"),
        member("srv/dir/new", "new"),
        member("srv/hard", hard="srv/kept"),
        member("lib64/through-a-link", "x"),
        member("dev/null", type=b"3", devmajor=1, devminor=3),
        member("srv/out", link="../../../../etc/passwd"),
    )
    config = {
        "Env": ["GREETING=hello", "PATH=/opt/own:/usr/local/bin:/usr/bin:/bin"],
        "WorkingDir": "/srv",
        "User": "4242",
        "Cmd": ["/bin/sh", "-c", "exit 3"],
    }
    musl = musl_layer(tmp_path)
    layers = [bottom, files, above, *([musl] if musl else [])]
    layout = write_layout(
        tmp_path / "layout",
        layers,
        config,
        compress=["gzip", "zstd", "", "gzip"],
        architectures=["s390x", ARCHITECTURE],
    )
    image = store.push(layout, f"{name}/one:v1")
    (tmp_path / "own.txt").write_text("copied")
    builder = (
        Template(file_context_path=tmp_path)
        .from_image(image)
        .copy("own.txt", "/data/")
        .set_user("dev")
        .set_workdir("/work/here")
        .run_cmd("echo $GREETING >made; id -un >>made", user="root")
    )
    said = build(builder, name)
    assert any("devices of the image were left out" in line for line in said), said
    assert any("exit 3" in line and "not started" in line for line in said)

    sandbox = create(name)
    run = sandbox.commands.run
    assert run("id -un; pwd; echo $GREETING $PATH; cat made /data/own.txt").stdout.splitlines() == [
        "dev",
        "/work/here",
        "hello /opt/own:/usr/local/bin:/usr/bin:/bin",
        "hello",
        "root",
        "copied",
    ]
    shown = run("cd /srv && ls . && ls dir && cat hard /usr/lib/through-a-link && head -c4 out", user="root").stdout
    assert shown.split() == ["dir", "hard", "kept", "out", "new", "keptxroot"]
    assert run("ls /srv/gone /srv/dir/old 2>&1 || true").stdout.count("No such file") == 2
    assert run("stat -c '%u %g %a' /srv/kept", user="root").stdout == "7 8 640\n"
    assert run("grep ^u4242: /etc/passwd").stdout.startswith("u4242:x:4242:")
    assert run("grep -c 'id -u' /etc/profile || true").stdout == "0\n", "each command would pay for it"
    assert "BEGIN CERTIFICATE" in run("head -c 2000 /etc/ssl/certs/ca-certificates.crt").stdout
    assert run("[ -c /dev/null ] && command -v python3 || echo none").stdout == "none\n"
    if musl:
        assert run("hello").stdout == "hello from musl\n"
    wget = f"busybox wget -T 5 -q -O - http://{store.address}/v2/ && echo reached || echo closed"
    assert run(wget).stdout == "closed\n", "registries' networks are for builds alone"
    sandbox.files.write("/work/here/by-sdk", "x")
    assert [entry.name for entry in sandbox.files.list("/srv/dir")] == ["new"]

    assert any("CACHED FROM" in line for line in build(builder, name))
    other = write_layout(tmp_path / "other", [bottom, files, layer(member("srv/other", "o"))], config)
    said = build(Template().from_image(store.push(other, f"{name}/two")), f"{name}-two")
    assert any("2 of 3 layers are here already" in line for line in said), said


@one_tier("the registry is spoken to from a sandbox, whatever the wall")
def test_a_registry_that_lies_fails_the_build_and_leaves_nothing(server: Any, name: str) -> None:
    address = own_address()
    assert address is not None
    before = set((server.data_dir / "sandboxes").iterdir())
    with lying_registry(address) as liar:

        def pull(what: str, **more: Any) -> list[str]:
            return build(Template().from_image(f"{liar.address}/{what}:v1", **more), f"{name}-{what}", skip_cache=True)

        for what, says in (
            ("digest", "cannot be used: .*[Dd]igest did not match"),
            ("size", r"cannot be used: the layer \w+ has \d+ bytes, and not \d+ as promised"),
            ("path", "cannot be used: its manifest names something by another digest"),
            ("metadata", "cannot be used: reading blob .*169.254.169.254"),
            ("loopback", "cannot be used: reading blob .*127.0.0.1:9"),
            ("missing", "not found: .*manifest unknown"),
            ("private", "access denied to"),
        ):
            with pytest.raises(BuildException, match=says):
                pull(what)
        with pytest.raises(BuildException, match="access denied to"):
            pull("private", username=USER, password="wrong")
        assert any("layer 1/1" in line for line in pull("private", username=USER, password=PASSWORD))
        assert not any("layer 1/1" in line for line in pull("honest")), "the same image is unpacked once"
    with pytest.raises(BuildException, match="not found: its registry does not answer"):
        build(Template().from_image(f"{liar.address}/honest:v2"), name)
    with pytest.raises(BuildException, match="not the name of an image"):
        build(Template().from_image("--authfile=/etc/passwd"), name)
    with client(server) as http:
        made = http.post("/v3/templates", json={"name": name}).json()
        start = f"/v2/templates/{made['templateID']}/builds/{made['buildID']}"
        assert http.post(start, json={"fromImage": "x", "fromImageRegistry": {"type": "other"}}).status_code == 400
    eventually(lambda: set((server.data_dir / "sandboxes").iterdir()) <= before, what="no sandbox of a build is left")


@one_tier("an archive is read in a sandbox, whatever the wall")
def test_archives_on_disk_become_templates_by_the_command(
    server: Any, name: str, tmp_path: Path, create: Callable[..., Sandbox]
) -> None:
    """Of an image that has one program and nothing else."""
    program = layer(member("opt/busybox", BUSYBOX.read_bytes(), mode=0o755))
    layout = write_layout(tmp_path / "layout", [program], {"Env": ["FROM=archive"]})
    saved = tmp_path / "saved.tar"
    copy = ["skopeo", "copy", "-q", "--insecure-policy", f"oci:{layout}", f"docker-archive:{saved}:own/image:v1"]
    subprocess.run(copy, check=True, capture_output=True)
    broken = tmp_path / "broken.tar"
    broken.write_bytes(saved.read_bytes()[:-200_000])

    def run(source: Path, *more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "atoll.cli.main", "template", "import", str(source), "--name", name, *more]
        command += ["--data-dir", str(server.data_dir)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    first = run(saved, "--json")
    assert first.returncode == 0, first.stderr
    assert json.loads(first.stdout)["names"] == [f"default/{name}"]
    sandbox = create(name)
    assert sandbox.commands.run("id -un; echo $FROM; /opt/busybox echo works").stdout == ("user\narchive\nworks\n")
    sandbox.pty.create(PtySize(80, 24), timeout=5).kill()
    second = run(layout)
    assert second.returncode == 0, second.stderr
    assert "of the same digest" in second.stderr or "unpacked" in second.stderr
    failed = run(broken)
    assert failed.returncode == 1
    assert "the archive cannot be used" in failed.stderr
    assert "neither an archive nor an OCI layout" in run(tmp_path).stderr
