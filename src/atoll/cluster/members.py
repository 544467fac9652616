"""Which machines Ray has, and an agent on each: looked at every LOOK_EVERY_S, for as long as the server runs.

A machine that is new to Ray gets its actor and a certificate, and its node is added to the control plane. One that Ray
has lost is no member: its node falls silent by itself, and is removed once it has no sandboxes any more.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from atoll.model.errors import AtollError, Conflict, InvalidRequest, NotFound
from atoll.tls import Authority
from atoll.tls.peers import node_identity

LOCAL = "local"
"""Of `--cluster`: a Ray cluster of this machine alone, which the server starts itself."""
NAMESPACE = "atoll"
LOOK_EVERY_S = 1.0
_ANSWER_WITHIN_S = 10.0
_AGAIN_S = 5.0
_DAYS = 365

_log = structlog.get_logger("atoll.cluster")


class Nodes(Protocol):
    """What is asked of the control plane. Both raise AtollError."""

    def put(self, node_id: str, host: str, port: int) -> None: ...

    def remove(self, node_id: str) -> None: ...


@dataclass(slots=True)
class _Member:
    actor: Any
    host: str
    node_id: str = ""
    added: tuple[str, int] | None = None
    failure: str = ""


def check_address(address: str) -> None:
    """Raises InvalidRequest: not an address, or Ray is not installed."""
    if address != LOCAL and not address.startswith("ray://"):
        raise InvalidRequest(f"a cluster is ray://HOST:PORT or {LOCAL}, not {address[:100]!r}")
    if importlib.util.find_spec("ray") is None:
        raise InvalidRequest("Ray is not installed here", hint="pip install 'atoll[ray]'")


class Members:
    """`run` in a thread of its own: all of Ray's calls block. Nothing it does is waited for by a request."""

    def __init__(self, address: str, isolation: str, authority: Authority, nodes: Nodes) -> None:
        self._address = address
        self._isolation = isolation
        self._authority = authority
        self._nodes = nodes
        self._members: dict[str, _Member] = {}
        self._gone: set[str] = set()
        self._ray: Any = None

    def run(self, stop: threading.Event) -> None:
        """Until `stop`. What fails is logged and tried again: Ray's head may be started again."""
        while not stop.is_set():
            try:
                self._connect()
                self._look()
            except Exception as error:  # Ray's own are of many kinds
                _log.warning("cluster.unreachable", address=self._address, error=str(error)[:500])
                self._disconnect()
                stop.wait(_AGAIN_S)
            stop.wait(LOOK_EVERY_S)
        self._disconnect()

    def _connect(self) -> None:
        if self._ray is not None:
            return
        ray: Any = importlib.import_module("ray")
        options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "configure_logging": False}
        if self._address == LOCAL:
            ray.init(include_dashboard=False, num_cpus=1, **options)
        else:
            ray.init(self._address, **options)
        self._ray = ray
        _log.info("cluster.connected", address=self._address)

    def _disconnect(self) -> None:
        ray, self._ray = self._ray, None
        self._members.clear()
        if ray is not None:
            try:
                ray.shutdown()
            except Exception as error:
                _log.debug("cluster.shutdown_failed", error=str(error)[:500])

    def _look(self) -> None:
        alive = {one["NodeID"]: one["NodeManagerAddress"] for one in self._ray.nodes() if one["Alive"]}
        for name in self._members.keys() - alive.keys():
            member = self._members.pop(name)
            _log.warning("cluster.member_lost", node=member.node_id, host=member.host)
            if member.node_id:
                self._gone.add(member.node_id)
        for name, host in alive.items():
            if name not in self._members:
                self._members[name] = _Member(self._actor(name), host)
        asked = {member.actor.report.remote(): member for member in self._members.values()}
        if asked:
            answered, _ = self._ray.wait(list(asked), num_returns=len(asked), timeout=_ANSWER_WITHIN_S)
            for reference in answered:
                self._take(asked[reference], reference)
        self._remove_gone()

    def _actor(self, ray_node: str) -> Any:
        """The machine's: made where there is none, started again by Ray for ever, never anywhere else."""
        from atoll.cluster.ray_actor import NodeAgent  # on the other side too

        strategies: Any = importlib.import_module("ray.util.scheduling_strategies")
        return (
            self._ray.remote(NodeAgent)
            .options(
                name=f"atoll-node-{ray_node}",
                namespace=NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                num_cpus=0,
                scheduling_strategy=strategies.NodeAffinitySchedulingStrategy(ray_node, soft=False),
            )
            .remote(self._isolation)
        )

    def _take(self, member: _Member, reference: Any) -> None:
        try:
            report = self._ray.get(reference)
        except Exception as error:  # its actor is being started again
            _log.warning("cluster.no_report", host=member.host, error=str(error)[:500])
            return
        member.node_id = str(report["node_id"])
        if report["failure"] and report["failure"] != member.failure:
            _log.error("cluster.agent_failed", node=member.node_id, host=member.host, error=report["failure"][:500])
        member.failure = report["failure"]
        if report["authority"] != self._authority.pem.strip():
            identity = node_identity(self._authority, [member.host], _DAYS)
            self._ray.get(member.actor.certify.remote(identity), timeout=_ANSWER_WITHIN_S * 6)
            _log.info("cluster.certified", node=member.node_id, host=member.host)
        elif report["is_alive"] and member.added != (member.host, report["port"]):
            try:
                self._nodes.put(member.node_id, member.host, int(report["port"]))
            except AtollError as error:
                _log.error("cluster.not_added", node=member.node_id, host=member.host, error=str(error))
                return
            self._gone.discard(member.node_id)
            member.added = member.host, int(report["port"])
            _log.info("cluster.member", node=member.node_id, host=member.host, port=report["port"])

    def _remove_gone(self) -> None:
        for node_id in list(self._gone):
            try:
                self._nodes.remove(node_id)
            except Conflict:
                continue  # it has sandboxes still, or they count as lost only later
            except NotFound:
                pass
            except AtollError as error:
                _log.debug("cluster.not_removed", node=node_id, error=str(error))
                continue
            self._gone.discard(node_id)
