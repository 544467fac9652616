"""One process of the server, as the launcher sees it: started by a fork, ready when it says so, known by its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import NoReturn

import structlog

from atoll.model.errors import AtollError
from atoll.server import cluster, front, gateway, node
from atoll.server.plan import Plan, control_dir, node_dir, root_place
from atoll.server.process import live, say
from atoll.server.rights import Rights, give_up
from atoll.wire.node.codec import error_from_json, error_to_json

STOP_S = 30.0
"""A stop that takes longer ends the process as it is; the next start reclaims what is left."""
_REPORT_MAX = 65536

_log = structlog.get_logger("atoll.serve")


class Role(StrEnum):
    """Which process it is; also its name in `ps`."""

    NODE = "node"
    FRONT = "front"
    EGRESS = gateway.NAME
    CLUSTER = cluster.NAME


class Child:
    """`start` may be called again after an end. Everything else looks at the process that was started last."""

    def __init__(self, role: Role, plan: Plan) -> None:
        self.role = role
        self._plan = plan
        self._pid: int | None = None
        self._status: int | None = None
        self._report = b""
        self.reports: int | None = None
        """Readable when the child says something: that it is ready, or why it could not start."""
        self.is_ready = False
        self.failure: AtollError | None = None

    def start(self, others: Iterable[int] = ()) -> None:
        """`others`: report pipes that the child does not keep. Raises OSError (no room for a process)."""
        self._hang_up()
        reading, writing = os.pipe()
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        self._pid = os.fork()
        if self._pid == 0:
            for descriptor in (reading, *others):
                os.close(descriptor)
            _be(self.role, self._plan, parent, writing)
        os.close(writing)
        os.set_blocking(reading, False)
        self.reports, self._report, self._status = reading, b"", None
        self.is_ready, self.failure = False, None

    def listen(self) -> None:
        """Reads the child's report: ready, or why not. Nothing else in it is trusted."""
        if self.reports is None:
            return
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self.reports, 4096):
                self._report += piece
                if len(self._report) > _REPORT_MAX:
                    break
            self._hang_up()
            with contextlib.suppress(ValueError):
                report = json.loads(self._report)
                self.is_ready = report == "ready"
                self.failure = None if self.is_ready else error_from_json(report)

    def _hang_up(self) -> None:
        if self.reports is not None:
            os.close(self.reports)
            self.reports = None

    def has_ended(self) -> bool:
        """Never waits."""
        if self._pid is not None and self._status is None:
            found, status = os.waitpid(self._pid, os.WNOHANG)
            if found:
                self._status = status
        return self._pid is None or self._status is not None

    @property
    def how_it_ended(self) -> str:
        """For people."""
        if self._status is None:
            return "it runs"
        if os.WIFSIGNALED(self._status):
            return f"ended by {signal.Signals(os.WTERMSIG(self._status)).name}"
        return f"exit status {os.waitstatus_to_exitcode(self._status)}"

    def terminate(self) -> None:
        """Asks it to stop."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it and waits for that."""
        self._signal(signal.SIGKILL)
        if self._pid is not None and self._status is None:
            _, self._status = os.waitpid(self._pid, 0)

    def _signal(self, number: signal.Signals) -> None:
        if self._pid is not None and not self.has_ended():
            os.kill(self._pid, number)


def _be(role: Role, plan: Plan, parent: int, writing: int) -> NoReturn:
    """The child's life. Whatever happens, it never returns into the launcher's code."""
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if role is Role.EGRESS:
            gateway.become(_orders(plan, parent, writing))
        if role is Role.CLUSTER:
            cluster.become(_cluster_orders(plan, parent, writing))
        plan.egress.close()
        if role is Role.NODE:
            if plan.agent_id is None:
                plan.close_sockets()
            live(role.value, parent, writing, _keep_all, lambda ready, stop: node.run(plan, ready, stop))
        live(role.value, parent, writing, lambda: _give_up(plan), lambda ready, stop: front.run(plan, ready, stop))
    except AtollError as error:
        say(writing, error_to_json(error))
    except BaseException:
        _log.exception("process.failed", process=role.value)
    finally:
        os._exit(1)


def _orders(plan: Plan, parent: int, writing: int) -> gateway.Orders:
    """Raises InvalidRequest."""
    settings = plan.settings
    gateway.private_networks(settings)
    return gateway.Orders(
        parent,
        plan.egress.fileno(),
        writing,
        plan.gateway_user,
        str(root_place(settings.data_dir, gateway.NAME)),
        settings.egress_allow_private,
        settings.registry_allow_private,
        settings.name_servers,
        settings.log_level,
        settings.log_format,
    )


def _cluster_orders(plan: Plan, parent: int, writing: int) -> cluster.ClusterOrders:
    settings = plan.settings
    return cluster.ClusterOrders(
        parent,
        writing,
        str(settings.data_dir),
        settings.cluster,
        settings.isolation,
        plan.url,
        settings.log_level,
        settings.log_format,
        plan.keys[0],
    )


def _keep_all() -> None:
    """The node makes sandboxes: it needs what the server has."""


def _give_up(plan: Plan) -> None:
    data_dir = plan.settings.data_dir
    rights = Rights(plan.user, writable=(control_dir(data_dir),), readable=(node_dir(data_dir),))
    give_up(rights, root_place(data_dir, Role.FRONT.value))
