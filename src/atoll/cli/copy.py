"""`atoll cp`: a file or a directory into a sandbox or out of it, through the public SDK.

What a sandbox sends is read as a stranger's (`runtime/files/untar.py`): no name or link leads out of the target.
"""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from uuid import uuid4

from atoll.cli.sandboxes import attached
from atoll.model.errors import InvalidRequest, NotFound, PlatformError

if TYPE_CHECKING:
    from e2b import Sandbox


def copy(source: str, target: str) -> None:
    """One of both is `SANDBOX:PATH`. A directory is copied into the target under its own name, links and modes kept.

    Raises InvalidRequest, NotFound, PlatformError, OSError.
    """
    from_there, to_there = _remote(source), _remote(target)
    if (from_there is None) == (to_there is None):
        raise InvalidRequest("one of both must be SANDBOX:PATH", hint="atoll cp FILE SANDBOX:/home/user/")
    if to_there is not None:
        _put(Path(source), *to_there)
    elif from_there is not None:
        _get(*from_there, Path(target))


def _remote(word: str) -> tuple[str, str] | None:
    """(sandbox, path) of `SANDBOX:PATH`; None for a path of the host (`./a:b` is one)."""
    sandbox_id, colon, path = word.partition(":")
    if not colon or "/" in sandbox_id or not sandbox_id:
        return None
    return sandbox_id, path or "."


def _put(source: Path, sandbox_id: str, target: str) -> None:
    if not source.exists():
        raise NotFound(f"{source} not found")
    sandbox = attached(sandbox_id)
    if source.is_dir():
        _put_tree(source.resolve(), sandbox, target)
        return
    if target.endswith("/") or _is_directory(sandbox, target):
        target = f"{target.rstrip('/')}/{source.name}"
    with source.open("rb") as file:
        sandbox.files.write(target, file, request_timeout=0)
    if mode := stat.S_IMODE(source.stat().st_mode) & 0o111:
        _script(sandbox, 'chmod "a+x" -- "$1"' if mode == 0o111 else 'chmod "u+x" -- "$1"', target)


def _put_tree(source: Path, sandbox: Sandbox, target: str) -> None:
    from atoll.runtime.files.tree import UNPACK, tar_stream

    home = _script(sandbox, "id -un; cd; pwd").splitlines()
    archive = f"/tmp/.atoll-{uuid4().hex}.tar"
    sandbox.files.write(archive, tar_stream(source), user="root", request_timeout=0)
    _script(sandbox, UNPACK, str(PurePosixPath(home[1]) / target), archive, home[0], source.name, user="root")


def _get(sandbox_id: str, source: str, target: Path) -> None:
    sandbox = attached(sandbox_id)
    if _is_directory(sandbox, source):
        _get_tree(sandbox, source, target)
        return
    if target.is_dir():
        target = target / PurePosixPath(source).name
    elif not target.parent.is_dir():
        raise NotFound(f"{target.parent} is no directory")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with sandbox.files.read(source, format="stream", request_timeout=0) as chunks, draft.open("wb") as out:
            for chunk in chunks:
                out.write(chunk)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def _get_tree(sandbox: Sandbox, source: str, target: Path) -> None:
    from atoll.runtime.files.tree import PACK, TooMuch, zip_of_tar
    from atoll.runtime.files.untar import BadArchive

    path = _script(sandbox, 'cd -- "$1" && pwd', source).rstrip("\n")
    archive = f"/tmp/.atoll-{uuid4().hex}.tar"
    _script(sandbox, PACK, path, archive, user="root")
    try:
        with sandbox.files.read(archive, format="stream", user="root", request_timeout=0) as chunks:
            packed = zip_of_tar(chunks)
    except (BadArchive, TooMuch) as error:
        raise PlatformError(f"{source} cannot be copied: {error}") from error
    finally:
        sandbox.files.remove(archive, user="root")
    try:
        _unpack(packed, target / (PurePosixPath(path).name or "root"))
    finally:
        packed.unlink()


def _unpack(packed: Path, root: Path) -> None:
    """What stands in the way is replaced, a directory is added to; a link of the host's is never followed."""
    if root.is_symlink():
        raise InvalidRequest(f"{root} is a link", hint="remove it, or name another target")
    root.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(packed) as archive:
        for entry in archive.infolist():
            path, mode = root / entry.filename, entry.external_attr >> 16
            _no_link_above(root, path)
            if path.is_symlink() or path.is_file():
                path.unlink()
            if stat.S_ISDIR(mode):
                path.mkdir(parents=True, exist_ok=True)
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            if stat.S_ISLNK(mode):
                path.symlink_to(archive.read(entry).decode())
                continue
            with archive.open(entry) as content, path.open("xb") as out:
                shutil.copyfileobj(content, out)
            path.chmod(stat.S_IMODE(mode) & 0o777)


def _no_link_above(root: Path, path: Path) -> None:
    for above in path.parents:
        if above == root:
            return
        if above.is_symlink():
            raise InvalidRequest(f"{above} is a link", hint="remove it, or name another target")


def _is_directory(sandbox: Sandbox, path: str) -> bool:
    from e2b import FileType, NotFoundException

    try:
        return sandbox.files.get_info(path).type == FileType.DIR
    except NotFoundException:
        return False


def _script(sandbox: Sandbox, script: str, *arguments: str, user: str | None = None) -> str:
    from e2b import CommandExitException

    try:
        line = shlex.join(["bash", "-c", script, "atoll", *arguments])
        return sandbox.commands.run(line, user=user, timeout=0, request_timeout=0).stdout
    except CommandExitException as error:
        if error.exit_code == 20:
            raise NotFound(error.stderr.strip()) from error
        raise PlatformError(f"copying failed in the sandbox: {error.stderr.strip()}") from error
