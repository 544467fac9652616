"""The audit log of a real server, by the commands of `atoll audit`; and ids in answers and in the server's log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from e2b import NotFoundException, Sandbox

from atoll.control.access.auth import digest_of
from support.server import ServerProcess


def _atoll(data_dir: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "atoll.cli.main", *words, "--data-dir", str(data_dir)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_who_did_what_to_which_sandbox_is_kept_and_cannot_be_changed(
    make_server: Callable[..., ServerProcess], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = make_server(data_dir=tmp_path / "data", options=["--isolation", "namespaces", "--end-sandboxes"])
    for name, value in server.environ.items():
        monkeypatch.setenv(name, value)
    sandbox = Sandbox.create()
    sandbox.set_timeout(100)
    sandbox.kill()
    with pytest.raises(NotFoundException):
        Sandbox.connect(sandbox.sandbox_id)
    headers = {"X-API-Key": server.api_key, "X-Request-Id": "mine-1"}
    answer = httpx.post(f"{server.url}/sandboxes/absent/timeout", json={"timeout": 5}, headers=headers)
    assert (answer.status_code, answer.headers["x-request-id"]) == (404, "mine-1")
    stranger = httpx.delete(f"{server.url}/sandboxes/{sandbox.sandbox_id}", headers={"X-API-Key": "e2b_00"})
    assert (stranger.status_code, len(stranger.headers["x-request-id"])) == (401, 16)
    server.stop(signal.SIGTERM)

    found = [json.loads(line) for line in _atoll(server.data_dir, "audit", "export").stdout.splitlines()]
    one = [entry for entry in found if entry["target"].get("sandbox_id") == sandbox.sandbox_id]
    assert [(entry["action"].split()[0], entry["status"]) for entry in one] == [
        ("POST", 201), ("POST", 204), ("DELETE", 204), ("POST", 404)
    ]  # fmt: skip
    assert {entry["key"] for entry in found} == {f"sha256:{digest_of(server.api_key)[:16]}"}
    assert found[-1]["request"] == "mine-1"
    only = _atoll(server.data_dir, "audit", "export", "--sandbox", sandbox.sandbox_id, "--since", "2020")
    assert [json.loads(line) for line in only.stdout.splitlines()] == one
    created = next(entry for entry in one if entry["status"] == 201)
    line = next(line for line in server.log.read_text().splitlines() if "sandbox.created" in line)
    assert created["request"] in line, "the server's own log has the request's id"

    whole = _atoll(server.data_dir, "audit", "verify", "--json")
    assert (whole.returncode, json.loads(whole.stdout)["entries"]) == (0, len(found))
    (path,) = (server.data_dir / "control" / "audit").iterdir()
    path.write_text(path.read_text().replace('"status":404', '"status":204', 1))
    forged = _atoll(server.data_dir, "audit", "verify")
    assert (forged.returncode, "it was changed" in forged.stderr) == (1, True)
