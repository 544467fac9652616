"""What the processes of one server have in common: settings, keys, listening sockets, and where things lie."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import make_url

from atoll.cli.domain import TlsDomain
from atoll.config import Settings
from atoll.control.store import default_url
from atoll.model.capacity import Capacity
from atoll.model.errors import InvalidRequest
from atoll.model.node_addresses import NodeAddress

_DATABASE = ("atoll.db", "atoll.db-wal", "atoll.db-shm")


@dataclass(frozen=True, slots=True)
class Plan:
    """Made by the launcher before it starts anything; every process inherits it.

    `user` is the front's, `gateway_user` the egress gateway's: None where the server is not root. `egress` is where the
    gateway listens for the node; it stays open while the gateway is started again.
    """

    settings: Settings
    keys: tuple[str, ...] = field(repr=False)
    sock: socket.socket
    tls: TlsDomain | None
    user: int | None
    gateway_user: int | None
    egress: socket.socket
    capacity: Capacity
    seal_key: bytes = field(repr=False)
    """With which secrets lie on disk."""
    nodes: tuple[NodeAddress, ...] = ()
    """On other machines."""
    identity: str = field(default="", repr=False)
    """How the control plane proves itself to them, or an agent to its control plane (`tls.peers`)."""
    agent_id: str | None = None
    """This is a node alone, which listens on `sock` for its control plane; None: a whole server."""

    @property
    def domain(self) -> str:
        """Under which sandboxes have host names."""
        if self.tls is not None:
            return self.tls.domain
        return self.settings.domain or f"localhost:{self.sock.getsockname()[1]}"

    @property
    def url(self) -> str:
        """Where a client on this machine reaches the server."""
        return url_of(self.settings.host, self.sock.getsockname()[1])

    @property
    def node_socket(self) -> Path:
        """Where the node listens for the front."""
        return node_dir(self.settings.data_dir) / "control.sock"

    @property
    def gateway_socket(self) -> Path:
        """Where the gateway listens for the node."""
        return egress_socket(self.settings.data_dir)

    def close_sockets(self) -> None:
        """In a process that no stranger is to reach."""
        self.sock.close()
        if self.tls is not None:
            self.tls.sock.close()

    @property
    def database_url(self) -> str:
        return database_url(self.settings)


def url_of(host: str, port: int) -> str:
    """Where a client on this machine reaches a server that listens on `host`."""
    reachable = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "[::1]"}.get(host, host)
    if ":" in reachable and not reachable.startswith("["):
        reachable = f"[{reachable}]"
    return f"http://{reachable}:{port}"


def node_dir(data_dir: Path) -> Path:
    """Of the node's socket: the node's own, and the front may look into it."""
    return data_dir / "node"


def control_dir(data_dir: Path) -> Path:
    """What the control plane keeps, and all that the front may write to."""
    return data_dir / "control"


def egress_socket(data_dir: Path) -> Path:
    """Only root may come as far as that."""
    return data_dir / "egress.sock"


def root_place(data_dir: Path, process: str) -> Path:
    """Where the root directory of a process is put together; empty for every other process."""
    return data_dir / f"{process}-root"


def database_url(settings: Settings) -> str:
    """The one that was set, else SQLite in the control plane's directory."""
    return settings.database_url or default_url(control_dir(settings.data_dir))


def check_database(settings: Settings) -> None:
    """Raises InvalidRequest for a SQLite file where the process that uses it may not write."""
    url = make_url(database_url(settings))
    place = control_dir(settings.data_dir)
    if url.get_backend_name() == "sqlite" and place not in Path(url.database or "").absolute().parents:
        raise InvalidRequest(
            f"ATOLL_DATABASE_URL names the SQLite file {url.database!r}, which is not below {place}",
            hint="only what lies there may be written by the control plane; leave the setting out, or use PostgreSQL",
        )


def prepare_directories(data_dir: Path, user: int | None) -> None:
    """Makes them, and moves in what servers before the division kept elsewhere. Raises OSError."""
    node, control = node_dir(data_dir), control_dir(data_dir)
    control.mkdir(mode=0o700, exist_ok=True)
    node.mkdir(mode=0o755, exist_ok=True)
    for process in ("front", "egress"):
        root_place(data_dir, process).mkdir(mode=0o700, exist_ok=True)
    for name in (*_DATABASE, "logs", "metrics"):
        if (data_dir / name).exists() and not (control / name).exists():
            (data_dir / name).rename(control / name)
    if user is not None:
        _give(control, user)


def _give(directory: Path, user: int) -> None:
    """To `user`, with all that is in it. Links are not followed: the front has written here before."""
    for _, _, files, folder in os.fwalk(directory, follow_symlinks=False):
        os.fchown(folder, user, user)
        for name in files:
            os.chown(name, user, user, dir_fd=folder, follow_symlinks=False)
