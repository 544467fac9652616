"""A PostgreSQL cluster of a test's own: Debian's programs, a temporary directory, a port on loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

_USER = "atoll"


def _programs() -> Path:
    """Where `initdb` and `postgres` are; skips where they are not."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.skip("PostgreSQL is not installed: Debian's package `postgresql` (scripts/setup.sh test)")
    return found[-1].parent


@dataclass(frozen=True)
class Postgres:
    """A cluster that runs."""

    programs: Path
    port: int
    process: subprocess.Popen[bytes]

    def sql(self, statement: str, database: str = "postgres") -> str:
        """What `psql` prints of it, unaligned and without heads."""
        command = [self.programs / "psql", "-XAtq", "-h", "127.0.0.1", "-p", str(self.port), "-U", _USER, database]
        done = subprocess.run([*command, "-c", statement], check=True, capture_output=True, text=True, timeout=60)
        return done.stdout.strip()

    def new_database(self, template: str = "template1") -> str:
        """The URL of an empty one, or of a copy of another that nobody uses."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        return f"postgresql+asyncpg://{_USER}@127.0.0.1:{self.port}/{name}"


@contextlib.contextmanager
def cluster() -> Iterator[Postgres]:
    """Neither it nor the machine loses anything if it is killed: nothing in it is worth a sync."""
    programs = _programs()
    # PostgreSQL refuses to run as root.
    user = pwd.getpwnam("postgres") if os.getuid() == 0 else pwd.getpwuid(os.getuid())
    place = Path(tempfile.mkdtemp(prefix="atoll-postgres-"))
    try:
        os.chown(place, user.pw_uid, user.pw_gid)
        data = place / "data"
        common = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []} if os.getuid() == 0 else {}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", _USER, "-A", "trust", "-E", "UTF8", "--locale", "C", "--no-sync"],
            check=True, capture_output=True, timeout=120, cwd="/", **common,
        )  # fmt: skip
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        settings = [f"unix_socket_directories={place}", "fsync=off", "full_page_writes=off", "max_connections=100"]
        options = [part for one in settings for part in ("-c", one)]
        command = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), *options]
        with open(place / "log", "wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **common)
        try:
            made = Postgres(programs, port, process)
            _wait(made, place / "log")
            yield made
        finally:
            process.send_signal(3)  # SIGQUIT: at once
            process.wait(30)
    finally:
        shutil.rmtree(place)


def _wait(made: Postgres, log: Path) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            made.sql("SELECT 1")
            return
        except subprocess.CalledProcessError:
            if made.process.poll() is not None or time.monotonic() > until:
                raise AssertionError(log.read_text()[-2000:]) from None
            time.sleep(0.1)
