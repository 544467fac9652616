"""Small files in a sandbox's own root that say which sandbox it is. Called inside it, before any user code runs."""

from __future__ import annotations

import hashlib
import os

_RUN = "/run/e2b"


def write_identity(sandbox_id: str, template_id: str) -> None:
    """The files by which E2B's guest says where programs are; the variables of the same names are the guest's.

    The machine's id is the same whenever the sandbox starts again, and no other's.
    """
    write_file("/etc/machine-id", hashlib.sha256(f"machine-id {sandbox_id}".encode()).hexdigest()[:32].encode() + b"\n")
    for name, text in (("SANDBOX", "true"), ("SANDBOX_ID", sandbox_id), ("TEMPLATE_ID", template_id)):
        write_file(f"{_RUN}/.E2B_{name}", text.encode())


def write_file(path: str, content: bytes) -> None:
    """Writes what may be there already, never through a symbolic link in its place. Raises OSError."""
    # Cut to length afterwards and not with O_TRUNC: ext4 writes a file that was truncated out to the disk at once.
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o644)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        descriptor = os.open(path, flags, 0o644)
    except OSError:  # a symbolic link, as systemd's resolv.conf is
        os.unlink(path)
        descriptor = os.open(path, flags, 0o644)
    try:
        os.write(descriptor, content)
        os.ftruncate(descriptor, len(content))
    finally:
        os.close(descriptor)
