"""The guest as a directory that any root file system can be given: an interpreter, its libraries, its modules.

A template need not have a Python, nor the host's C library, nor any at all: everything that the guest runs on comes
from the host's own interpreter, copied once and bind-mounted read-only at `AT`. The loader is started by its path with
its own library path, so that nothing is looked up in the sandbox's file system, and nothing leaks to its programs.

    <runtime>/bin/python3      the interpreter            <runtime>/so/             loader and shared libraries
    <runtime>/bin/sudo         for sandboxes, see sudo.py <runtime>/lib/python3.N/  our packages and extension modules
                                                          <runtime>/lib/python3N.zip  the standard library, compiled

The directory's name carries a digest of what it was made from; a change of any file makes a new one beside it.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import importlib.util
import json
import marshal
import os
import secrets
import shutil
import struct
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from atoll.model.errors import BackendUnavailable

AT = "/.atoll/guest"
"""Where the directory lies inside a sandbox."""

_FORMAT = "3"
_COLLECT_WITHIN_S = 60.0
_COLLECT = (
    "import json,sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from atoll.isolation.gvisor.collect import main; main(sys.argv[2])"
)
_OURS = ("atoll.guest", "atoll.http1", "atoll.wire", "atoll.model", "atoll.isolation.linux", "atoll.isolation.gvisor")
_PT_INTERP = 3
_FACTS = "facts.json"
_UNUSED_AFTER_S = 30 * 86400.0


async def prepare(place: Path, entry: str) -> Path:
    """The runtime directory for the guest `entry`, made below `place` if there is none that is up to date.

    Raises BackendUnavailable: the guest cannot be imported, or the disk says no.
    """
    try:
        if (ready := await asyncio.to_thread(_find_current, place, entry)) is not None:
            return ready
        facts = await _collect(entry)
        target = place / f"guest-{_digest(_stamps(facts))}"
        if not target.is_dir():
            await asyncio.to_thread(_make, facts, target)
            await asyncio.to_thread(_remove_unused, place)
    except OSError as error:
        raise BackendUnavailable(f"the guest's runtime cannot be made: {error}") from error
    return target


def _find_current(place: Path, entry: str) -> Path | None:
    """A runtime made from files that are all still the same."""
    for facts_file in place.glob(f"guest-*/{_FACTS}"):
        try:
            facts = json.loads(facts_file.read_bytes())
            same = facts["entry"] == entry and facts["executable"] == os.path.realpath(sys.executable)
            same = same and facts["modules"].get(__package__) == os.path.join(os.path.dirname(__file__), "__init__.py")
            if same and f"guest-{_digest(_stamps(facts))}" == facts_file.parent.name:
                os.utime(facts_file)
                return facts_file.parent
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _remove_unused(place: Path) -> None:
    """Runtimes that no server has asked for in weeks. (A sandbox needs its own for as long as it lives.)"""
    for facts_file in place.glob(f"guest-*/{_FACTS}"):
        if facts_file.stat().st_mtime < time.time() - _UNUSED_AFTER_S:
            shutil.rmtree(facts_file.parent, ignore_errors=True)


_INTERPRETER = (f"{AT}/so/ld.so", "--library-path", f"{AT}/so", f"{AT}/bin/python3", "-P", "-s", "-S", "-B")
"""-P -s -S: nothing of the sandbox's own files gets into the module path."""

_RUN_SUDO = "from atoll.isolation.gvisor.sudo import main; main()"
_SUDO = f"""#!/bin/sh
# runsc does not honour set-uid programs: this asks the guest instead. See atoll/isolation/gvisor/sudo.py.
PYTHONHOME={AT} PYTHONCOERCECLOCALE=0 exec {" ".join(_INTERPRETER)} -c '{_RUN_SUDO}' "$@"
"""


def command(entry: str) -> list[str]:
    """The argument vector of the sandbox's first process."""
    return [*_INTERPRETER, "-c", "from atoll.isolation.gvisor.boot import main; main()", entry]


def environment() -> dict[str, str]:
    """Its environment; the guest empties it."""
    return {"PYTHONHOME": AT, "PYTHONDONTWRITEBYTECODE": "1", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}


async def _collect(entry: str) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-c", _COLLECT, json.dumps(sys.path), entry,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        out, err = await asyncio.wait_for(process.communicate(), _COLLECT_WITHIN_S)
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    try:
        facts: dict[str, Any] = json.loads(out)
    except ValueError:
        words = err.decode(errors="replace").strip().splitlines()
        detail = words[-1] if words else "without a word"
        raise BackendUnavailable(f"the guest {entry!r} cannot be loaded: {detail}") from None
    facts["entry"] = entry
    return facts


def _stamps(facts: Mapping[str, Any]) -> list[str]:
    """Every file that a runtime is made from, as it is now. Raises OSError when one is missing."""
    texts = [
        str(path)
        for package in _OURS
        if package in facts["modules"]
        for path in _texts(Path(facts["modules"][package]).parent)
    ]
    paths = sorted({facts["executable"], *facts["modules"].values(), *facts["libraries"], *texts})
    found = [(path, os.stat(path)) for path in paths]
    return [f"{path} {one.st_size} {one.st_mtime_ns}" for path, one in found]


def _texts(package: Path) -> Iterator[Path]:
    """The files of a package of ours: Python, and what the guest hands to kernels of other languages."""
    return (path for path in package.rglob("*") if path.suffix in (".py", ".js", ".java"))


def _digest(stamps: list[str]) -> str:
    return hashlib.sha256("\n".join([_FORMAT, *stamps]).encode()).hexdigest()[:16]


def _make(facts: Mapping[str, Any], target: Path) -> None:
    building = target.with_name(f".{target.name}-{secrets.token_hex(4)}")
    try:
        _fill(facts, building)
        try:
            building.rename(target)
        except OSError:  # another server was faster
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _fill(facts: Mapping[str, Any], place: Path) -> None:
    major, minor = facts["version"]
    library = place / "lib" / f"python{major}.{minor}"
    for folder in (place / "bin", place / "so", library / "lib-dynload"):
        folder.mkdir(parents=True)
    _copy(Path(facts["executable"]), place / "bin" / "python3")
    modules = {name: Path(path) for name, path in facts["modules"].items()}
    for path in set(facts["libraries"]) - set(facts["modules"].values()):
        _copy(Path(path), place / "so" / Path(path).name)
    _copy(Path(_loader(Path(facts["executable"]))), place / "so" / "ld.so")
    with zipfile.ZipFile(place / "lib" / f"python{major}{minor}.zip", "w", zipfile.ZIP_STORED) as standard:
        for name, source in sorted(modules.items()):
            relative = _relative(name, source)
            if source.suffix == ".so":
                _copy(source, library / ("lib-dynload" if "." not in name else relative.parent) / source.name)
            elif name.split(".")[0] in sys.stdlib_module_names:
                standard.writestr(str(relative.with_suffix(".pyc")), _compiled(source, str(relative)))
            else:
                _install(source, library / relative)
    for package in _OURS:
        if package in modules:
            room, folder = modules[package].parent, library / _relative(package, modules[package]).parent
            for source in _texts(room):
                (_install if source.suffix == ".py" else _copy)(source, folder / source.relative_to(room))
    (place / "bin" / "sudo").write_text(_SUDO)
    (place / _FACTS).write_text(json.dumps(facts))
    for path in [place, *place.rglob("*")]:
        path.chmod(0o755 if path.is_dir() or path.parent.name in ("bin", "so") else 0o644)


def _relative(name: str, source: Path) -> Path:
    """Where a module's file lies below a directory of the module path."""
    parts = name.split(".")
    return Path(*parts, source.name) if source.stem == "__init__" else Path(*parts[:-1], source.name)


def _compiled(source: Path, name: str) -> bytes:
    """A .pyc that is never checked against its source: reading a file costs more in there than out here."""
    code = compile(source.read_bytes(), f"{AT}/{name}", "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + struct.pack("<IQ", 0b01, 0) + marshal.dumps(code)


def _install(source: Path, target: Path) -> None:
    """A module of ours with its source (some is read as text, and tracebacks show it) and ready-made code."""
    _copy(source, target)
    cached = Path(importlib.util.cache_from_source(str(target)))
    cached.parent.mkdir(exist_ok=True)
    cached.write_bytes(_compiled(source, target.name))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def _loader(executable: Path) -> str:
    """The program interpreter that an ELF executable names. Raises OSError for a file without one."""
    with executable.open("rb") as file:
        head = file.read(64)
        if head[:5] != b"\x7fELF\x02":
            raise OSError(errno.ENOEXEC, "not a 64-bit ELF executable", str(executable))
        offset, size, count = *struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54)
        for number in range(count):
            file.seek(offset + number * size)
            kind, _, where, _, _, length = struct.unpack("<IIQQQQ", file.read(40))
            if kind == _PT_INTERP:
                file.seek(where)
                return file.read(length).rstrip(b"\0").decode()
    raise OSError(errno.ENOEXEC, "statically linked: it cannot load extension modules", str(executable))
