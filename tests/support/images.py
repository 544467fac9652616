"""Images that tests make: layers as archives, an OCI layout of them, and Debian's registry to push them to."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import platform
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from atoll.egress.forbidden import host_addresses
from support.python_environment import cache_dir

OCI = "application/vnd.oci.image"
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
BUSYBOX = Path("/bin/busybox")


def own_address() -> str | None:
    """An address of this machine that a sandbox's gateway can be told to open; None if it has but loopback."""
    found = sorted(str(one) for one in host_addresses() if one.version == 4 and not one.is_loopback)
    return found[0] if found else None


def registry_environ() -> dict[str, str]:
    """Settings of a server whose builds may reach a registry on this machine."""
    address = own_address()
    if address is None:
        return {}
    return {"ATOLL_REGISTRY_ALLOW_PRIVATE": f"{address}/32", "ATOLL_INSECURE_REGISTRIES": address}


def member(name: str, content: bytes | str = b"", **facts: Any) -> tuple[tarfile.TarInfo, bytes]:
    """An entry of a layer; `facts` are those of TarInfo, `link` makes it a symbolic link."""
    data = content.encode() if isinstance(content, str) else content
    made = tarfile.TarInfo(name)
    made.mode = 0o644
    if name.endswith("/"):
        made.type, made.mode = tarfile.DIRTYPE, 0o755
    if "link" in facts:
        made.type, made.linkname = tarfile.SYMTYPE, facts.pop("link")
    if "hard" in facts:
        made.type, made.linkname = tarfile.LNKTYPE, facts.pop("hard")
    for fact, value in facts.items():
        setattr(made, fact, value)
    made.size = len(data) if made.isreg() else 0
    return made, data


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """An archive of them, in that order."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for made, data in members:
            archive.addfile(made, io.BytesIO(data) if made.isreg() else None)
    return raw.getvalue()


def busybox_layer(*names: str) -> bytes:
    """A static busybox under these names, and nothing else."""
    first, *others = [f"bin/{name}" for name in names]
    return layer(
        member("bin/"),
        member(first, BUSYBOX.read_bytes(), mode=0o755),
        *(member(name, link=f"/{first}") for name in others),
    )


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout


def write_layout(
    directory: Path,
    layers: Sequence[bytes],
    config: Mapping[str, Any] | None = None,
    *,
    compress: Sequence[str] = (),
    architectures: Sequence[str] = (ARCHITECTURE,),
) -> Path:
    """An OCI layout with one image, for each of `architectures`; `compress`: "gzip", "zstd" or "" for each layer."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        (blobs / digest(data).removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": kind, "digest": digest(data), "size": len(data)}

    packed = []
    for number, data in enumerate(layers):
        how = compress[number] if number < len(compress) else "gzip"
        made = {"gzip": lambda d: gzip.compress(d, 1), "zstd": zstd, "": bytes}[how](data)
        packed.append(put(made, f"{OCI}.layer.v1.tar{'+' if how else ''}{how}"))
    manifests = []
    for one in architectures:
        described = {
            "architecture": one,
            "os": "linux",
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [digest(data) for data in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": f"{OCI}.manifest.v1+json",
            "config": put(json.dumps(described).encode(), f"{OCI}.config.v1+json"),
            "layers": packed,
        }
        placed = put(json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json")
        manifests.append({**placed, "platform": {"architecture": one, "os": "linux"}})
    index: dict[str, Any] = {"schemaVersion": 2, "manifests": manifests}
    if len(manifests) > 1:
        many = {"mediaType": f"{OCI}.index.v1+json", **index}
        index = {"schemaVersion": 2, "manifests": [put(json.dumps(many).encode(), f"{OCI}.index.v1+json")]}
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return directory


def registry_program() -> str | None:
    """Debian's docker-registry, unpacked and not installed: that would start a service. None where it cannot be had."""
    if found := shutil.which("docker-registry"):
        return found
    place = cache_dir() / "docker-registry"
    program = place / "usr" / "bin" / "docker-registry"
    if not program.exists():
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=place) as folder, contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                ["apt-get", "-q", "download", "docker-registry"], cwd=folder, capture_output=True, check=True
            )
            package = next(iter(Path(folder).glob("*.deb")), folder)
            subprocess.run(["dpkg-deb", "-x", str(package), str(place)], capture_output=True, check=True)
    return str(program) if program.exists() else None


class Registry:
    """Debian's docker-registry, on an address of this machine."""

    def __init__(self, host: str, port: int) -> None:
        self.address = f"{host}:{port}"

    def push(self, layout: Path, name: str) -> str:
        """Returns how a build names it."""
        target = f"{self.address}/{name}"
        command = ["skopeo", "copy", "-q", "--insecure-policy", "--all", "--dest-tls-verify=false"]
        subprocess.run([*command, f"oci:{layout}", f"docker://{target}"], check=True, capture_output=True)
        return target


@contextlib.contextmanager
def registry(directory: Path) -> Iterator[Registry]:
    """Runs until the block ends."""
    host = own_address()
    assert host is not None
    with socket.create_server((host, 0)) as probe:
        port = probe.getsockname()[1]
    settings = directory / "registry.yml"
    settings.write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {directory}/registry}}}}\n"
        f"http: {{addr: '{host}:{port}'}}\nlog: {{level: error}}\n"
    )
    program = registry_program()
    assert program is not None
    with (directory / "registry.log").open("wb") as log:
        command = [program, "serve", str(settings)]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={"PATH": os.defpath})
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://{host}:{port}/v2/", timeout=5).close()
                break
            assert process.poll() is None
            assert time.monotonic() < deadline, "the registry does not start"
            time.sleep(0.05)
        yield Registry(host, port)
    finally:
        process.terminate()
        process.wait(10)
