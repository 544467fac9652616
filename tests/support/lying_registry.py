"""A registry that lies, in the way that the repository's name says; on an address of this machine.

`honest` and `private` (which wants a name and a password) tell the truth.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from support.images import ARCHITECTURE, OCI, busybox_layer, digest

USER, PASSWORD = "alice", "s3cret"
ELSEWHERE = {"metadata": "http://169.254.169.254/latest", "loopback": "http://127.0.0.1:9/x"}
"""Where it sends those who ask for a layer."""


class LyingRegistry(ThreadingHTTPServer):
    """Answers until it is shut down; `asked` are the paths that were asked for."""

    daemon_threads = True

    def __init__(self, host: str) -> None:
        super().__init__((host, 0), _Answers)
        self.address = f"{host}:{self.server_address[1]}"
        self.asked: list[str] = []
        plain = busybox_layer("busybox", "sh")
        self.layer = gzip.compress(plain, 1)
        rootfs = {"type": "layers", "diff_ids": [digest(plain)]}
        self.config = json.dumps({"architecture": ARCHITECTURE, "os": "linux", "config": {}, "rootfs": rootfs}).encode()

    def manifest(self, name: str) -> bytes:
        """What the repository says of its image."""
        size = len(self.layer) - (4096 if name == "size" else 0)
        blob = {"mediaType": f"{OCI}.layer.v1.tar+gzip", "digest": digest(self.layer), "size": size}
        if name == "path":
            blob["digest"] = "sha256:../../../../etc/passwd"
        config = {"mediaType": f"{OCI}.config.v1+json", "digest": digest(self.config), "size": len(self.config)}
        kind = f"{OCI}.manifest.v1+json"
        return json.dumps({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": [blob]}).encode()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: LyingRegistry

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        parts = self.path.split("/")
        name = parts[2] if len(parts) > 3 else ""
        wanted = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        if name in ("", "private") and self.headers.get("Authorization") != wanted:
            self._answer(b"{}", 401, {"WWW-Authenticate": 'Basic realm="lying"'})
            return
        if not name:
            self._answer(b"{}")
        elif name == "missing":
            self._answer(b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}', 404)
        elif parts[3] == "manifests":
            manifest = self.server.manifest(name)
            about = {"Content-Type": f"{OCI}.manifest.v1+json", "Docker-Content-Digest": digest(manifest)}
            self._answer(manifest, 200, about)
        elif parts[4] == digest(self.server.config):
            self._answer(self.server.config)
        else:
            self._layer(name)

    def _layer(self, name: str) -> None:
        data = self.server.layer
        if name in ELSEWHERE:
            self._answer(b"", 307, {"Location": ELSEWHERE[name]})
        elif name == "digest":
            self._answer(data[:-1] + bytes([data[-1] ^ 1]))
        elif name in ("endless", "slow"):
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(b"x" * (1 << 16 if name == "endless" else 1))
                    time.sleep(0 if name == "endless" else 0.1)
            self.close_connection = True
        else:
            self._answer(data)

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)


@contextlib.contextmanager
def lying_registry(host: str) -> Iterator[LyingRegistry]:
    """Runs until the block ends."""
    with LyingRegistry(host) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(10)
