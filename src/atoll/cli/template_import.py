"""`atoll template import`: an OCI layout or a `docker save` archive on this disk becomes a server's template.

By the interface that the SDK's builds use: the archive is uploaded under its hash, and a build is based on that. It is
read in a sandbox of the server; nothing here looks into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import httpx
from rich.console import Console

from atoll.cli.environment import client_environ
from atoll.config import Settings
from atoll.model.errors import BuildFailed, InvalidRequest, PlatformError

_POLL_S = 0.2
_WITHIN_S = 60.0


def import_image(settings: Settings, source: Path, name: str, console: Console) -> dict[str, Any]:
    """Returns the template's names and ids. Raises InvalidRequest (no archive), Conflict (no server), BuildFailed."""
    environ = client_environ(settings)
    headers = {"X-API-Key": environ["E2B_API_KEY"]}
    with _archive(source) as archive, httpx.Client(base_url=environ["E2B_API_URL"], timeout=_WITHIN_S) as client:
        client.headers.update(headers)
        digest = _digest(archive)
        made = _answer(client.post("/v3/templates", json={"name": name}))
        template, build = made["templateID"], made["buildID"]
        upload = _answer(client.get(f"/templates/{template}/files/{digest}"))
        if not upload["present"]:
            size = archive.seek(0, 2)
            archive.seek(0)
            console.print(f"uploading {size >> 20} MiB")
            _answer(httpx.put(upload["url"], content=archive, headers={"Content-Length": str(size)}, timeout=None))
        _answer(client.post(f"/v2/templates/{template}/builds/{build}", json={"fromImage": f"upload:{digest}"}))
        _follow(client, f"/templates/{template}/builds/{build}/status", console)
    return {"templateID": template, "buildID": build, "names": made["names"], "tags": made["tags"]}


def _follow(client: httpx.Client, status: str, console: Console) -> None:
    seen = 0
    while True:
        found = _answer(client.get(status, params={"logsOffset": seen}))
        for entry in found["logEntries"]:
            console.print(entry["message"], markup=False, highlight=False)
        seen += len(found["logEntries"])
        if found["status"] == "error":
            raise BuildFailed(found.get("reason", {}).get("message", "the import failed"))
        if found["status"] == "ready" and not found["logEntries"]:
            return
        if not found["logEntries"]:
            time.sleep(_POLL_S)


@contextlib.contextmanager
def _archive(source: Path) -> Iterator[IO[bytes]]:
    """The file, or an archive of the directory, which is the same for the same content."""
    if source.is_file():
        with source.open("rb") as file:
            yield file
        return
    if not (source / "oci-layout").is_file():
        raise InvalidRequest(
            f"{source} is neither an archive nor an OCI layout",
            hint="give what `docker save` or `skopeo copy … oci:DIR` has written",
        )
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w") as made:
            for path in sorted(source.rglob("*")):
                if path.is_file():
                    facts = tarfile.TarInfo(str(path.relative_to(source)))
                    facts.size = path.stat().st_size
                    with path.open("rb") as content:
                        made.addfile(facts, content)
        file.seek(0)
        yield file


def _digest(archive: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while piece := archive.read(1 << 20):
        digest.update(piece)
    return digest.hexdigest()


def _answer(response: httpx.Response) -> Any:
    if response.status_code >= 300:
        raise PlatformError(f"the server answered {response.status_code}: {response.text[:500]}")
    return response.json() if response.content else None
