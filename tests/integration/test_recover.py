"""`atoll recover` and `atoll gc`, beside real servers that were killed."""

from __future__ import annotations

import os
import secrets
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from e2b import Sandbox

from atoll.cli.gc import own_base
from atoll.config import Settings
from atoll.images.layers import ImageLayers
from atoll.isolation.linux.disk import loops
from support.host import requires
from support.server import ServerDied


def _atoll(data_dir: Path, templates_dir: Path, *words: str) -> str:
    environ = {**os.environ, "ATOLL_TEMPLATES_DIR": str(templates_dir)}
    command = [sys.executable, "-m", "atoll.cli.main", *words, "--data-dir", str(data_dir)]
    return subprocess.run(command, env=environ, capture_output=True, text=True, check=True, timeout=60).stdout


def _options(server: Any) -> dict[str, Any]:
    return {"api_key": server.api_key, "api_url": server.url, "sandbox_url": server.url}


@requires("root")
def test_an_empty_database_facing_sandboxes_is_refused_and_recover_adopts_them(
    start_server: Callable[..., Any], templates_dir: Path
) -> None:
    running = start_server()
    sandbox = Sandbox.create(timeout=300, **_options(running))
    sandbox.files.write("kept", "kept")
    command = sandbox.commands.run("sleep 1000", background=True, timeout=0)
    assert (
        "recovered"
        in subprocess.run(
            [sys.executable, "-m", "atoll.cli.main", "recover", "--data-dir", str(running.data_dir)],
            capture_output=True,
            text=True,
            check=False,
        ).stderr
    ), "not beside a server"
    running.kill()
    for path in (running.data_dir / "control").glob("atoll.db*"):
        path.unlink()
    (running.data_dir / "control" / "state-mark").unlink(missing_ok=True)
    with pytest.raises(ServerDied, match=r"does not know 1 of 1 sandboxes"):
        running.start()
    told = _atoll(running.data_dir, templates_dir, "recover")
    assert f"{sandbox.sandbox_id}  is running, and the database does not know it: it is added" in told
    assert "nothing was changed" in told
    _atoll(running.data_dir, templates_dir, "recover", "--yes")
    running.start()
    again = Sandbox.connect(sandbox.sandbox_id, **_options(running))
    assert again.files.read("kept") == "kept"
    assert command.pid in {process.pid for process in again.commands.list()}, "it was not touched"
    assert again.get_info().lifecycle == {"on_timeout": "pause", "auto_resume": False}
    assert again.kill()


@requires("root")
def test_gc_removes_what_a_server_left_that_was_never_started_again_and_no_sandbox(
    start_server: Callable[..., Any], templates_dir: Path
) -> None:
    running = start_server()
    data_dir = running.data_dir
    sandbox = Sandbox.create(timeout=300, **_options(running))
    base = own_base(Settings(data_dir, templates_dir))
    groups = [point / base for point in Path("/sys/fs/cgroup").glob("*") if (point / base).is_dir()]
    groups += [path for path in (Path("/sys/fs/cgroup") / base,) if path.is_dir()]
    assert groups, "the control: it has groups"
    running.kill()
    (data_dir / "trash" / "rest").mkdir()
    (data_dir / "sandboxes" / "half").mkdir()
    shown = _atoll(data_dir, templates_dir, "gc")
    assert f"would remove a directory that nobody needs: {data_dir}/trash/rest" in shown
    assert f"would remove a sandbox that was never finished: {data_dir}/sandboxes/half" in shown
    assert base not in shown, "a sandbox lives there"
    assert (data_dir / "trash" / "rest").exists()
    _atoll(data_dir, templates_dir, "gc", "--yes")
    assert not (data_dir / "trash" / "rest").exists()
    assert not (data_dir / "sandboxes" / "half").exists()
    running.start()
    assert Sandbox.kill(sandbox.sandbox_id, **_options(running))
    running.kill()
    shown = _atoll(data_dir, templates_dir, "gc", "--yes")
    assert base in shown
    assert not any(path.exists() for path in groups)


@requires("root")
def test_gc_removes_devices_images_and_records_that_nothing_names(
    start_server: Callable[..., Any], templates_dir: Path
) -> None:
    server = start_server()
    data_dir, images = server.data_dir, ImageLayers(templates_dir, server.data_dir)
    sandbox = Sandbox.create(timeout=300, **_options(server))
    before = _images(templates_dir)
    sandbox.create_snapshot(mode="filesystem")
    (named,) = _images(templates_dir) - before
    server.kill()
    imported, forgotten = secrets.token_hex(20), secrets.token_hex(20)
    with images.capturing(imported, (), ""):
        pass
    for image_id in (named, imported):
        os.utime(templates_dir / ".images" / image_id, (1, 1))
    with sqlite3.connect(data_dir / "control" / "atoll.db") as database:
        database.execute("INSERT INTO template_layers (key, image_id) VALUES (?, ?)", ("k" * 40, forgotten))
    (data_dir / "sandboxes" / "gone").mkdir()
    image = data_dir / "sandboxes" / "gone" / "disk.img"
    image.write_bytes(bytes(1 << 20))
    device = subprocess.run(
        ["losetup", "--show", "-f", image], capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        shown = _atoll(data_dir, templates_dir, "gc")
        assert f"would remove a loop device without a sandbox: {device} ({image})" in shown
        assert f"would remove an image that nothing names: {templates_dir}/.images/{imported}" in shown
        assert f"would remove a record of an image that is gone: {forgotten}" in shown
        assert named not in shown, "a snapshot"
        assert shown.count("loop device") == 1, "that of the sandbox is in use"
        _atoll(data_dir, templates_dir, "gc", "--yes")
        assert loops.device_of(image) is None
    finally:
        if loops.is_on(device.removeprefix("/dev/"), image):
            subprocess.run(["losetup", "-d", device], check=True)
    assert _images(templates_dir) & {named, imported} == {named}
    assert forgotten not in _atoll(data_dir, templates_dir, "gc")
    server.start()
    again = Sandbox.connect(sandbox.sandbox_id, **_options(server))
    assert again.commands.run("echo alive").stdout == "alive\n"
    assert again.kill()


def _images(templates_dir: Path) -> set[str]:
    place = templates_dir / ".images"
    return set(os.listdir(place)) if place.is_dir() else set()
