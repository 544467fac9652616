"""Nodes, for the operator alone: E2B's paths, and what an operator needs besides (adding, removing, images)."""

from __future__ import annotations

from fastapi import APIRouter, Response

from atoll.control.nodes.registry import NodeView
from atoll.control.placement import NodeState
from atoll.control.routes.common import FAILURES, CallerHere, ServicesHere, decoded, no_content, reply, reply_list
from atoll.model.errors import Conflict
from atoll.model.sandbox import Limits
from atoll.model.seams import NodeMachine
from atoll.wire.rest import nodes as wire

router = APIRouter(tags=["nodes"])

_MIB = 1 << 20
_UNKNOWN = NodeMachine("", "", "", 0, 0.0, 0, 0, 0, 0)


@router.get("/nodes", responses={200: {"model": list[wire.NodeOut]}, **FAILURES})
async def list_nodes(services: ServicesHere, caller: CallerHere) -> Response:
    """By id."""
    return reply_list([_out(one, services.nodes.allocated(one.node_id)) for one in services.nodes.all(caller)])


@router.get("/nodes/{node_id}", responses={200: {"model": wire.NodeOut}, **FAILURES})
async def get_node(node_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """One."""
    view = services.nodes.get(caller, decoded(node_id))
    return reply(_out(view, services.nodes.allocated(view.node_id)))


@router.post("/nodes/{node_id}", status_code=204, responses=FAILURES)
async def change_node(
    node_id: str, body: wire.NodeStatusChange, services: ServicesHere, caller: CallerHere
) -> Response:
    """`draining`: what runs there goes on, nothing new begins. `ready`: it takes new sandboxes again."""
    if body.status not in (wire.NodeStatus.DRAINING, wire.NodeStatus.READY):
        raise Conflict(f"a node cannot be made {body.status.value}", hint="ask for draining or ready")
    await services.nodes.set_draining(caller, decoded(node_id), body.status is wire.NodeStatus.DRAINING)
    return no_content()


@router.put("/nodes/{node_id}", status_code=204, responses=FAILURES)
async def put_node(node_id: str, body: wire.NewNode, services: ServicesHere, caller: CallerHere) -> Response:
    """Atoll's own: connects to the node from now on."""
    await services.nodes.put(caller, decoded(node_id), body.host, body.port)
    return no_content()


@router.delete("/nodes/{node_id}", status_code=204, responses=FAILURES)
async def remove_node(node_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """Atoll's own: one that was added so, and has no sandboxes any more."""
    await services.nodes.remove(caller, decoded(node_id))
    return no_content()


@router.get("/nodes/{node_id}/images", responses={200: {"model": list[wire.NodeImageOut]}, **FAILURES})
async def list_images(node_id: str, services: ServicesHere, caller: CallerHere) -> Response:
    """Atoll's own: the images that its sandboxes have made or stand on."""
    found = await services.nodes.images(caller, decoded(node_id))
    return reply_list(
        [
            wire.NodeImageOut(image_id=one.image_id, size_bytes=one.size, layers=one.layers, has_memory=one.has_memory)
            for one in found
        ]
    )


def _status(view: NodeView) -> wire.NodeStatus:
    if view.state is NodeState.SILENT:
        return wire.NodeStatus.UNHEALTHY if view.has_registered else wire.NodeStatus.CONNECTING
    return wire.NodeStatus(view.state.value)


def _out(view: NodeView, allocated: Limits) -> wire.NodeOut:
    machine = view.status.machine or _UNKNOWN
    disk = wire.DiskMetrics(used_bytes=machine.disk_used_mib * _MIB, total_bytes=machine.disk_mib * _MIB)
    creates = view.creates
    return wire.NodeOut(
        node_id=view.node_id,
        service_instance_id=view.node_id,
        version=machine.version,
        status=_status(view),
        status_changed_at=view.since,
        sandbox_count=view.status.sandboxes,
        sandbox_starting_count=max(0, creates.begun - creates.done - creates.failed),
        create_successes=creates.done,
        create_fails=creates.failed,
        metrics=wire.NodeMetrics(
            allocated_cpu=allocated.cpu_count,
            allocated_memory=allocated.memory_mib * _MIB,
            cpu_percent=round(machine.cpu_used_pct),
            cpu_count=machine.cpu_count,
            memory_used=machine.memory_used_mib * _MIB,
            memory_total=machine.memory_mib * _MIB,
            disks=[disk],
        ),
        machine_info=wire.MachineInfo(cpu_model_name=machine.processor, cpu_architecture=machine.architecture),
        load=view.status.load,
    )
