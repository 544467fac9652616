"""`atoll serve`: starts the server's processes, starts those again that end, and stops all in order.

    lock data dir ─► bind ─► egress, node ─► front ─► report: server.json, --ready-fd
                                         │ SIGTERM, SIGINT, end of --lifeline-fd
                                         ▼
                     stop: front, node, egress; forced after STOP_S

Single-threaded and without an event loop, so that it can fork at any time: a process that is started again begins with
everything loaded. It reads nothing but signals, the lifeline and its children's first words.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import select
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import structlog

from atoll.cli import logs, running
from atoll.cli.domain import open_domain
from atoll.cluster.members import check_address
from atoll.config import Settings
from atoll.control.access.auth import configured_keys
from atoll.control.telemetry.tracing import is_asked_for
from atoll.edge import bind
from atoll.isolation.linux.sys import oom
from atoll.model.capacity import Capacity, derive
from atoll.model.errors import PlatformError
from atoll.model.node_addresses import parse_nodes
from atoll.model.sealing import kept_key
from atoll.node.machine import machine_here
from atoll.server.child import STOP_S, Child, Role
from atoll.server.plan import Plan, check_database, control_dir, egress_socket, prepare_directories
from atoll.server.rights import unused_users
from atoll.tls.peers import control_identity, nodes_authority, peer_context
from atoll.wire import unix

_PAUSES_S = (0.0, 0.1, 0.25, 0.5, 1.0)
"""Before a process that keeps ending is started once more."""
_REFRESH_S = 1.0
"""How often an operator's certificate is looked at."""
_STEADY_S = 30.0
"""After so long the next end counts as the first."""

_log = structlog.get_logger("atoll.serve")


@dataclass(frozen=True, slots=True)
class Wires:
    """Descriptors that a parent process passed: one for saying that the server is ready, one whose end means "stop"."""

    ready_fd: int | None = None
    lifeline_fd: int | None = None

    def seal(self) -> None:
        """Keeps them from every program that the server starts. Raises OSError for a descriptor that is not open."""
        for fd in (self.ready_fd, self.lifeline_fd):
            if fd is not None:
                os.set_inheritable(fd, False)


@dataclass(frozen=True, slots=True)
class Agent:
    """A node alone: who it is, where it listens, and how it proves who it is (`tls.peers`)."""

    node_id: str
    host: str
    port: int
    identity: str = field(repr=False)


def serve(settings: Settings, wires: Wires) -> None:
    """Runs a server until it is asked to stop. Raises AtollError, OSError when it cannot start."""
    logs.configure(settings.log_level, settings.log_format)
    _log.debug("starting", data_dir=str(settings.data_dir), isolation=settings.isolation)
    wires.seal()
    _raise_descriptor_limit()
    if not oom.protect():  # with all that are started from here
        _log.info("not protected", reason="the OOM killer may end the server's processes; see `atoll doctor`")
    with running.exclusive(settings.data_dir):
        nodes = parse_nodes(settings.nodes)
        if settings.cluster:
            check_address(settings.cluster)
        identity = control_identity(nodes_authority(settings.data_dir))  # nodes may be added at any time
        keys = configured_keys(settings.api_keys, settings.data_dir)
        user, gateway_user = unused_users(2) if os.getuid() == 0 else (None, None)
        if user is not None:
            check_database(settings)
        is_asked_for(os.environ)  # says now what is missing for it
        with contextlib.ExitStack() as sockets:
            prepare_directories(settings.data_dir, user)
            tls = open_domain(settings, control_dir(settings.data_dir), user)
            if tls is not None:
                sockets.enter_context(contextlib.closing(tls.sock))
            sock = sockets.enter_context(contextlib.closing(bind(settings.host, settings.port)))
            egress = sockets.enter_context(contextlib.closing(unix.bind(egress_socket(settings.data_dir))))
            gc.freeze()  # what is loaded now stays, and is shared with every child
            capacity = _capacity(settings)
            seal_key = kept_key(settings.data_dir / "secret-key")
            plan = Plan(
                settings, tuple(keys), sock, tls, user, gateway_user, egress, capacity, seal_key, nodes, identity
            )
            Launcher(plan, wires).run()
    _log.info("stopped")


def serve_node(settings: Settings, agent: Agent, wires: Wires) -> None:
    """Runs a node alone, for a control plane on another machine. As `serve`."""
    logs.configure(settings.log_level, settings.log_format)
    wires.seal()
    _raise_descriptor_limit()
    oom.protect()
    with running.exclusive(settings.data_dir):
        peer_context(agent.identity, server=True)  # says now what is wrong with it
        gateway_user = unused_users(2)[1] if os.getuid() == 0 else None
        with contextlib.ExitStack() as sockets:
            prepare_directories(settings.data_dir, None)
            sock = sockets.enter_context(contextlib.closing(bind(agent.host, agent.port)))
            egress = sockets.enter_context(contextlib.closing(unix.bind(egress_socket(settings.data_dir))))
            gc.freeze()
            capacity, seal_key = _capacity(settings), kept_key(settings.data_dir / "secret-key")
            plan = Plan(
                settings, (), sock, None, None, gateway_user, egress, capacity, seal_key,
                identity=agent.identity, agent_id=agent.node_id,
            )  # fmt: skip
            Launcher(plan, wires).run()
    _log.info("stopped")


def _capacity(settings: Settings) -> Capacity:
    capacity = derive(machine_here(settings.data_dir), settings.sizes)
    parts = {name: getattr(capacity, name).as_json() for name in ("maximum", "team", "total", "at_once")}
    _log.info("capacity", disk_reserve_mib=capacity.disk_reserve_mib, **parts)
    return capacity


class Launcher:
    """One server's processes. `run` returns after a clean stop; raises what kept the server from starting."""

    def __init__(self, plan: Plan, wires: Wires) -> None:
        self._plan = plan
        self._wires = wires
        self._node = Child(Role.NODE, plan)
        self._front = Child(Role.FRONT, plan)
        self._egress = Child(Role.EGRESS, plan)
        is_agent = plan.agent_id is not None
        self._cluster = Child(Role.CLUSTER, plan)
        self._children = (self._node, self._egress) if is_agent else (self._front, self._node, self._egress)
        if plan.settings.cluster and not is_agent:
            self._children = (self._cluster, *self._children)
        """In the order of a stop."""
        self._stopping = False
        self._certificates = plan.tls.files if plan.tls is not None else None
        self._ends: dict[Role, list[float]] = {role: [] for role in Role}
        self._due: dict[Role, float] = {}

    def run(self) -> None:
        """See the module."""
        with _waking_signals() as waking:
            try:
                self._first_start(waking)
                if not self._stopping:
                    with self._announced():
                        self._watch(waking)
                self._stop(waking)
            except BaseException:
                for child in self._children:
                    child.kill()
                raise

    def _first_start(self, waking: int) -> None:
        self._start(self._egress)  # it needs longer than a fork, and nobody needs it yet
        started = [self._egress]
        for child in (self._node, self._front, self._egress, self._cluster):
            if child not in self._children:
                continue
            if child not in started:
                self._start(child)
                started.append(child)
            while not self._stopping and not child.is_ready:
                self._wait(waking, None)
                for one in started:
                    one.listen()
                    if one.has_ended():
                        raise one.failure or PlatformError(f"the {one.role} process ended before it was ready")

    def _start(self, child: Child) -> None:
        child.start([one.reports for one in self._children if one is not child and one.reports is not None])

    @contextlib.contextmanager
    def _announced(self) -> Iterator[None]:
        plan, settings = self._plan, self._plan.settings
        if plan.agent_id is not None:
            host, port = plan.sock.getsockname()[:2]
            _log.info("node ready", node=plan.agent_id, host=host, port=port, data_dir=str(settings.data_dir))
            _report_ready(self._wires.ready_fd, {"node": plan.agent_id, "host": host, "port": port, "pid": os.getpid()})
            yield
            return
        url = plan.url
        bundle = plan.tls.ca_bundle if plan.tls is not None else None
        domain = plan.tls.domain if plan.tls is not None else None
        origin = "configured" if settings.api_keys else "generated"
        with running.announced(settings.data_dir, url, origin, domain, str(bundle) if bundle else None):
            more = {"domain": domain, "ca": str(bundle)} if domain else {}
            _log.info(
                "ready", url=url, console=f"{url}/console", data_dir=str(settings.data_dir), pid=os.getpid(), **more
            )
            _report_ready(self._wires.ready_fd, {"url": url, "api_key": plan.keys[0], **more})
            yield

    def _watch(self, waking: int) -> None:
        while not self._stopping:
            self._wait(waking, min(self._due.values(), default=None))
            for child in self._children:
                child.listen()
                if child.role not in self._due and child.has_ended():
                    self._plan_restart(child)
                if not self._stopping and self._due.get(child.role, float("inf")) <= time.monotonic():
                    del self._due[child.role]
                    self._start(child)

    def _plan_restart(self, child: Child) -> None:
        now = time.monotonic()
        ends = self._ends[child.role] = [at for at in self._ends[child.role] if now - at < _STEADY_S]
        pause = _PAUSES_S[min(len(ends), len(_PAUSES_S) - 1)]
        ends.append(now)
        self._due[child.role] = now + pause
        reason = str(child.failure) if child.failure else child.how_it_ended
        _log.error("process.ended", process=child.role.value, how=reason, again_in_s=pause)

    def _stop(self, waking: int) -> None:
        """The front first: it may still have to end sandboxes through the node. The gateway goes on to the last."""
        _log.info("stopping", keep_sandboxes=self._plan.settings.keep_sandboxes)
        for child in self._children:
            child.terminate()
            deadline = time.monotonic() + STOP_S
            while not child.has_ended():
                if time.monotonic() > deadline:
                    _log.error("the stop took too long; ending as it is", process=child.role.value, seconds=STOP_S)
                    child.kill()
                    raise SystemExit(1)
                self._wait(waking, deadline)

    def _wait(self, waking: int, until: float | None) -> None:
        """Until a signal, news of a child or the lifeline's end."""
        lifeline = self._wires.lifeline_fd
        if self._certificates is not None:
            with contextlib.suppress(OSError):  # half written: next time
                self._certificates.refresh()
            until = min(until or float("inf"), time.monotonic() + _REFRESH_S)
        watched = [waking, *(child.reports for child in self._children if child.reports is not None)]
        if lifeline is not None and not self._stopping:
            watched.append(lifeline)
        timeout = None if until is None else max(0.0, until - time.monotonic())
        readable, _, _ = select.select(watched, [], [], timeout)
        if waking in readable:
            for number in os.read(waking, 256):
                self._take_signal(signal.Signals(number))
        if lifeline in readable and _has_ended(lifeline):
            self._ask_to_stop("end of the lifeline")

    def _take_signal(self, number: signal.Signals) -> None:
        if number is signal.SIGCHLD:
            return  # `has_ended` looks
        if self._stopping:
            _log.warning("asked twice to stop: ending at once", signal=number.name)
            for child in self._children:
                child.kill()
            os._exit(128 + number)
        self._ask_to_stop(number.name)

    def _ask_to_stop(self, cause: str) -> None:
        _log.info("asked to stop", cause=cause)
        self._stopping = True


@contextlib.contextmanager
def _waking_signals() -> Iterator[int]:
    """A descriptor on which the numbers of arriving signals can be read."""
    reading, writing = os.pipe()
    for end in (reading, writing):
        os.set_blocking(end, False)
    numbers = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT)
    before = {number: signal.signal(number, lambda *_: None) for number in numbers}
    waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(waking)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _has_ended(lifeline: int | None) -> bool:
    if lifeline is None:
        return False
    try:
        return not os.read(lifeline, 4096)
    except OSError:
        return True


def _report_ready(fd: int | None, facts: Mapping[str, str | int]) -> None:
    if fd is None:
        return
    with contextlib.suppress(BrokenPipeError), os.fdopen(fd, "w") as out:
        out.write(json.dumps(facts) + "\n")


def _raise_descriptor_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
