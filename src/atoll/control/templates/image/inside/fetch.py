"""Fetches an image into a directory, by skopeo. Runs inside the sandbox of an import; speaks to strangers' registries.

    fetch.py ORDER.json       ORDER: see `Order`; what it writes to standard error is for the build's log

The last line of standard output is the answer, `{"image": …}` or `{"error": {"kind", "message"}}`. skopeo checks every
digest against the manifest; here a limit is kept for all that comes, and a registry that sends nothing is given up.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from base64 import b64decode, b64encode
from pathlib import Path
from typing import Any

MAX_DOCUMENT = 4 << 20
_POLL_S = 0.05
_MAX_MEMBERS = 10_000
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
# What skopeo writes when nothing answers, as opposed to an answer that says no.
_UNREACHABLE = re.compile(
    r"no such host|dial tcp|i/o timeout|connection refused|network is unreachable|server misbehaving|"
    r"connection reset|TLS handshake timeout|no route to host|\bEOF\b",
    re.I,
)
_MISSING = re.compile(r"manifest unknown|name unknown|not found|repository name not known|\b404\b", re.I)
_DENIED = re.compile(r"unauthorized|denied|forbidden|authentication required|\b40[13]\b", re.I)


class ImageError(Exception):
    """`kind`: "unreachable", "missing", "denied" or "bad"."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def main(path: str) -> int:
    """The exit status is 0 in any case that has an answer."""
    order: dict[str, Any] = json.loads(Path(path).read_bytes())
    try:
        answer: dict[str, Any] = {"image": fetch(order)}
    except ImageError as error:
        answer = {"error": {"kind": error.kind, "message": str(error)}}
    except OSError as error:
        answer = {"error": {"kind": "bad", "message": f"it cannot be kept: {error}"}}
    print(json.dumps(answer))
    return 0


def fetch(order: dict[str, Any]) -> dict[str, Any]:
    """`order`: source (as skopeo writes it), into (a directory), registry (host and port), credentials, insecure,
    max_bytes, stall_s. Returns digest, layers and what of the configuration means something here. Raises ImageError.
    """
    into = Path(order["into"])
    work = into.with_name(into.name + ".settings")
    work.mkdir(mode=0o700, parents=True, exist_ok=True)
    command = ["skopeo", "copy", "--insecure-policy", "--quiet", "--preserve-digests"]
    if order["source"].startswith("docker://"):
        auth = work / "auth.json"
        auth.write_text(json.dumps({"auths": _auths(order)}))
        command += ["--authfile", str(auth)]
        if order.get("insecure"):
            command += ["--src-tls-verify=false"]
    source = _archive(order["source"]) if order["source"].startswith("archive:") else order["source"]
    machine = _MACHINES.get(platform.machine(), platform.machine())
    command[1:1] = [f"--override-arch={machine}", "--override-os=linux", f"--tmpdir={work}"]
    try:
        _run([*command, source, f"dir:{into}"], into, order)
    finally:
        shutil.rmtree(work)
    return _described(into, machine)


def _archive(source: str) -> str:
    """An OCI layout or what `docker save` writes, as a tar: the first says so in a file."""
    path = source.removeprefix("archive:")
    try:
        with tarfile.open(path) as archive:
            for number, member in enumerate(archive):
                archive.members = []  # type: ignore[attr-defined]  # it would remember all of them
                if member.name.removeprefix("./") == "oci-layout":
                    return f"oci-archive:{path}"
                if number > _MAX_MEMBERS:
                    break
    except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
        raise ImageError("bad", f"the archive is broken: {error}") from error
    return f"docker-archive:{path}"


def _run(command: list[str], into: Path, order: dict[str, Any]) -> None:
    most, stall_s = int(order["max_bytes"]), float(order["stall_s"])

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    output = into.with_name(into.name + ".output")
    with output.open("wb") as errors:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, preexec_fn=bound, start_new_session=True
        )
    had, since, why = 0, time.monotonic(), ""
    try:
        while process.poll() is None:
            time.sleep(_POLL_S)
            total = _size(into)
            if total - had >= min(1 << 16, most):
                had, since = total, time.monotonic()
            if total > most:
                why = f"it is larger than {most >> 20} MiB"
                break
            if time.monotonic() - since > stall_s:
                why = f"the registry sent next to nothing for {stall_s:.0f} s"
                break
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    if why:
        raise ImageError("bad", why)
    if process.returncode != 0:
        raise _failure(output.read_bytes()[-4000:].decode(errors="replace"), most)


def _size(directory: Path) -> int:
    total = 0
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                total += entry.stat(follow_symlinks=False).st_size
    except FileNotFoundError:
        return total
    return total


def _failure(text: str, most: int) -> ImageError:
    last = text.strip().splitlines()[-1:] or ["skopeo ended without a word"]
    _, _, quoted = last[0].partition('msg="')
    words = (quoted.rpartition('"')[0] or last[0]).replace('\\"', '"')[-600:]
    if "file too large" in words:
        return ImageError("bad", f"it is larger than {most >> 20} MiB")
    if "no space left" in words:
        return ImageError("bad", "it does not fit on the disk of the build's sandbox")
    if _DENIED.search(words):
        return ImageError("denied", words)
    if _MISSING.search(words):
        return ImageError("missing", words)
    if _UNREACHABLE.search(words) and "initializing source" in words:
        return ImageError("unreachable", words)
    return ImageError("bad", words)


def _described(into: Path, machine: str) -> dict[str, Any]:
    raw = _document(into / "manifest.json")
    manifest = _parsed(raw, "manifest")
    if manifest.get("mediaType", _MANIFESTS[0]) not in _MANIFESTS or manifest.get("schemaVersion") != 2:
        raise ImageError("bad", f"its manifest is of an unknown kind: {str(manifest.get('mediaType'))[:100]}")
    layers = manifest.get("layers")
    if not isinstance(layers, list) or len(layers) > 200:
        raise ImageError("bad", "its manifest has no list of layers, or one of more than 200")
    blobs = [_digest_of(layer) for layer in layers]
    for layer, blob in zip(layers, blobs, strict=True):
        if not (into / blob).is_file():
            raise ImageError("bad", f"the layer {blob[:12]} lies elsewhere: such images are not supported")
        if (has := (into / blob).stat().st_size) != layer.get("size"):
            raise ImageError("bad", f"the layer {blob[:12]} has {has} bytes, and not {layer.get('size')} as promised")
    config_digest = _digest_of(manifest.get("config"))
    raw_config = _document(into / config_digest)
    if hashlib.sha256(raw_config).hexdigest() != config_digest:
        raise ImageError("bad", "its configuration does not have the digest that its manifest names")
    config = _parsed(raw_config, "configuration")
    of = config.get("architecture", machine)
    if of != machine:
        raise ImageError("bad", f"it is for {str(of)[:40]} machines, this one is {machine}")
    diff_ids = (config.get("rootfs") or {}).get("diff_ids")
    if not isinstance(diff_ids, list) or len(diff_ids) != len(blobs):
        raise ImageError("bad", "its manifest and its configuration name different layers")
    plain = config.get("config") or {}
    return {
        "digest": hashlib.sha256(raw).hexdigest(),
        "blobs": blobs,
        "diff_ids": [_digest_of({"digest": one}) for one in diff_ids],
        "env": [str(one) for one in plain.get("Env") or []],
        "workdir": str(plain.get("WorkingDir") or ""),
        "user": str(plain.get("User") or ""),
        "command": [str(one) for one in [*(plain.get("Entrypoint") or []), *(plain.get("Cmd") or [])]],
    }


def _document(path: Path) -> bytes:
    with path.open("rb") as file:
        raw = file.read(MAX_DOCUMENT + 1)
    if len(raw) > MAX_DOCUMENT:
        raise ImageError("bad", f"its {path.name[:20]} is larger than {MAX_DOCUMENT >> 20} MiB")
    return raw


def _parsed(raw: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ImageError("bad", f"its {what} is no JSON") from error
    if not isinstance(value, dict):
        raise ImageError("bad", f"its {what} is no JSON object")
    return value


def _digest_of(value: Any) -> str:
    found = _DIGEST.fullmatch(str(value.get("digest"))) if isinstance(value, dict) else None
    if found is None:
        raise ImageError("bad", "its manifest names something by another digest than SHA-256")
    return found[1]


# Credentials


def _auths(order: dict[str, Any]) -> dict[str, dict[str, str]]:
    """As Docker's own file has them."""
    given = order.get("credentials")
    if not given:
        return {}
    match given.get("type"):
        case "aws":
            pair = _ecr_login(given)
        case "gcp":
            pair = f"_json_key:{given.get('serviceAccountJson', '')}"
        case _:
            pair = f"{given.get('username', '')}:{given.get('password', '')}"
    return {order["registry"]: {"auth": b64encode(pair.encode()).decode()}}


def _ecr_login(given: dict[str, str]) -> str:
    """AWS hands out a login for its registry for a call that is signed with the account's key."""
    region = str(given.get("awsRegion", ""))
    if not re.fullmatch(r"[a-z0-9-]{1,40}", region):
        raise ImageError("denied", f"{region[:40]!r} is no AWS region")
    host = f"api.ecr.{region}.amazonaws.com" + (".cn" if region.startswith("cn-") else "")
    headers = signed(given["awsAccessKeyId"], given["awsSecretAccessKey"], region, host, time.gmtime())
    request = urllib.request.Request(f"https://{host}/", b"{}", headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            token = json.loads(answer.read(MAX_DOCUMENT))["authorizationData"][0]["authorizationToken"]
        return b64decode(token).decode()
    except urllib.error.HTTPError as error:
        raise ImageError(
            "denied", f"AWS refuses the credentials: {error.read(300).decode(errors='replace')}"
        ) from error
    except OSError as error:
        raise ImageError("unreachable", f"AWS cannot be reached: {error}") from error
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise ImageError("bad", "AWS gave no login for its registry") from error


def signed(key_id: str, secret: str, region: str, host: str, now: time.struct_time) -> dict[str, str]:
    """Headers of ECR's GetAuthorizationToken with the body `{}`, by AWS's Signature Version 4."""
    day, moment = time.strftime("%Y%m%d", now), time.strftime("%Y%m%dT%H%M%SZ", now)
    target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken"
    headers = {
        "content-type": "application/x-amz-json-1.1",
        "host": host,
        "x-amz-date": moment,
        "x-amz-target": target,
    }
    names = ";".join(sorted(headers))
    listed = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    asked = "\n".join(["POST", "/", "", listed, names, hashlib.sha256(b"{}").hexdigest()])
    scope = f"{day}/{region}/ecr/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, hashlib.sha256(asked.encode()).hexdigest()])
    key = f"AWS4{secret}".encode()
    for part in (day, region, "ecr", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
