"""Every field of the newest SDK's requests is honoured or refused; none is taken and forgotten.

The tables name all fields of the SDK's own models: one that a newer SDK adds fails here until somebody decides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
from e2b.api.client import models
from e2b.envd.filesystem import filesystem_pb
from e2b.envd.process import process_pb
from protobuf import Message

from atoll.control.routes.ordering import network_from, order_from
from atoll.model.network import NetworkPolicy
from atoll.wire.envd import filesystem, process
from atoll.wire.rest.network import NetworkUpdate
from atoll.wire.rest.sandboxes import NewSandboxV2
from support.control import World, plane

Json = dict[str, Any]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with plane(tmp_path) as made:
        yield made


@dataclass(frozen=True)
class Made:
    """A sandbox that was made with the field: the create's answer, the details, what the node and the store know."""

    answer: Json
    detail: Json
    world: World

    @property
    def lifetime_s(self) -> float:
        begin, end = (datetime.fromisoformat(self.detail[name]) for name in ("startedAt", "endAt"))
        return (end - begin).total_seconds()

    @property
    def route(self) -> Any:
        return self.world.node.find(self.answer["sandboxID"])


Check = Callable[[Made], bool]

PAUSE = {"autoPause": True, "autoPauseMemory": False, "autoResume": {"enabled": True}}
WAKING = {"autoPause": True, "autoResume": {"enabled": True}}
RULES = {"api.test": [{"transform": {"headers": {"X-Key": "v"}}}]}
DENIED = {"denyOut": ["0.0.0.0/0"]}

CREATE: dict[str, tuple[Json, Check | str]] = {
    "template_id": ({"templateID": "team/other"}, lambda made: made.detail["templateID"] == "tid1"),
    "timeout": ({"timeout": 77}, lambda made: made.lifetime_s == 77),
    "auto_pause": ({"autoPause": True}, lambda made: made.detail["lifecycle"]["onTimeout"] == "pause"),
    "auto_pause_memory": (PAUSE, "autoResume wakes a sandbox that was paused with its memory"),
    "auto_resume": (WAKING, lambda made: made.detail["lifecycle"]["autoResume"]),
    "secure": ({"secure": True}, lambda made: bool(made.answer["envdAccessToken"])),
    "allow_internet_access": ({"allow_internet_access": False}, lambda made: not made.detail["allowInternetAccess"]),
    "network": ({"network": {}}, lambda made: made.detail["network"] == {"allowPublicTraffic": True}),
    "metadata": ({"metadata": {"k": "v"}}, lambda made: made.detail["metadata"] == {"k": "v"}),
    "env_vars": ({"envVars": {"A": "1"}}, lambda made: True),  # tests/integration: a command sees it
    "mcp": ({"mcp": {"exa": {}}}, lambda made: True),  # tests/integration: the SDK starts it by a command
    "iam": ({"iam": {"tokens": {"a": {"audience": "x", "tokenType": "jwt"}}}}, "iam"),
    "volume_mounts": ({"volumeMounts": [{"name": "v", "path": "/v"}]}, "volume 'v' not found"),
}
NETWORK: dict[str, tuple[Json, Check | str]] = {
    "allow_public_traffic": ({"allowPublicTraffic": False}, lambda made: bool(made.answer["trafficAccessToken"])),
    "mask_request_host": ({"maskRequestHost": "x:${PORT}"}, lambda made: made.route.mask_request_host == "x:${PORT}"),
    "egress_proxy": ({"egressProxy": {"address": "a:1"}}, "egressProxy"),
    "https_ports": ({"httpsPorts": [443]}, "httpsPorts"),
}
EGRESS: dict[str, tuple[Json, Callable[[NetworkPolicy], bool]]] = {
    "allow_out": ({"allowOut": ["a.test"], **DENIED}, lambda policy: policy.allow_out == ("a.test",)),
    "deny_out": (DENIED, lambda policy: policy.deny_out == ("0.0.0.0/0",)),
    "dns_servers": ({"dnsServers": ["1.1.1.1"]}, lambda policy: policy.dns_servers == ("1.1.1.1",)),
    "rules": ({"rules": RULES}, lambda policy: list(policy.rules["api.test"]) == [{"X-Key": "v"}]),
    "allow_internet_access": ({"allow_internet_access": False}, lambda policy: not policy.allow_internet),
}
"""What the gateway does with them is tested where there is one."""

NEWER: list[Json] = [
    {"denyPorts": [25]},
    {"rules": {"api.test": [{"block": True}]}},
    {"rules": {"api.test": [{"transform": {"query": {"k": "v"}}}]}},
]
"""What this server does not know of: half a policy would be a hole in it."""

OLDER: list[tuple[str, str, Json, str]] = [
    ("POST", "/v2/sandboxes", {"templateID": "base", "autoResume": {"enabled": True}}, "autoResume wakes"),
    ("PUT", "/sandboxes/{id}/network", {"allowPublicTraffic": False}, "allowPublicTraffic cannot be changed"),
    ("PUT", "/sandboxes/{id}/network", {"maskRequestHost": "x"}, "maskRequestHost cannot be changed"),
    ("PUT", "/sandboxes/{id}/network", {"egressProxy": {"address": "a:1"}}, "egressProxy"),
    ("PUT", "/sandboxes/{id}/network", {"httpsPorts": [443]}, "httpsPorts cannot be changed"),
    ("POST", "/v2/sandboxes", {"templateID": "base", "metadata": {"atoll.fpga": "1"}}, "'atoll.fpga' is no key"),
    ("POST", "/v2/sandboxes", {"templateID": "base", "timeout": 86401}, "timeout must be between"),
    ("POST", "/sandboxes/{id}/timeout", {"timeout": 86401}, "timeout must be between"),
    ("POST", "/sandboxes/{id}/connect", {"timeout": 86401}, "timeout must be between"),
    ("POST", "/v2/sandboxes/{id}/connect", {"timeout": 86401}, "timeout must be between"),
    ("POST", "/sandboxes/{id}/refreshes", {"duration": 3601}, "duration"),
]
"""Further spellings, and values beyond what can be kept."""


def fields_of(model: str) -> set[str]:
    return {field.name for field in attrs.fields(getattr(models, model))} - {"additional_properties"}


@pytest.mark.parametrize(
    ("model", "decided"),
    [
        ("NewSandboxV2", set(CREATE) - {"secure"}),
        ("NewSandbox", set(CREATE)),
        ("SandboxNetworkConfig", set(NETWORK) | set(EGRESS) - {"allow_internet_access"}),
        ("SandboxNetworkUpdateConfig", set(EGRESS) | {"egress_proxy"}),
        ("SandboxNetworkRule", {"transform"}),
        ("SandboxNetworkTransform", {"headers"}),
        ("SandboxAutoResumeConfig", {"enabled"}),
        ("SandboxVolumeMount", {"name", "path"}),
        ("NewVolume", {"name"}),
        ("SandboxIam", {"tokens"}),
        ("ConnectSandbox", {"timeout", "memory"}),  # `memory`: how a paused one comes back
        ("ConnectSandboxV2", {"timeout", "memory"}),
        ("ResumedSandbox", {"timeout", "auto_pause", "memory"}),
        ("SandboxPauseRequest", {"memory", "require_healthy_guest"}),
        ("SandboxTimeoutRequest", {"timeout"}),
        ("SandboxRefreshRequest", {"duration"}),
        ("NewSecret", {"name", "value", "metadata"}),
        ("SecretUpdate", {"value", "metadata"}),
        ("SandboxForkRequest", {"timeout", "count"}),
        ("SandboxSnapshotRequest", {"name", "memory"}),
        # `team_id`: a key has one team; `alias`: an older word for `name`.
        ("TemplateBuildRequestV3", {"name", "alias", "tags", "cpu_count", "memory_mb", "min_free_disk_mb", "team_id"}),
        (
            "TemplateBuildStartV2",
            {"from_image", "from_template", "from_image_registry", "force", "steps", "start_cmd", "ready_cmd"},
        ),
        ("TemplateUpdateRequest", {"public"}),
        ("AssignTemplateTagsRequest", {"target", "tags"}),
        ("DeleteTemplateTagsRequest", {"name", "tags"}),
    ],
)
def test_no_field_of_the_sdk_is_undecided(model: str, decided: set[str]) -> None:
    assert fields_of(model) == decided


def test_every_request_that_the_sdk_has_a_model_of_is_decided() -> None:
    requests = {name for name in dir(models) if name.startswith(("New", "Connect")) or name.endswith(("Request", "V3"))}
    decided = {"NewSandbox", "NewSandboxV2", "ConnectSandbox", "ConnectSandboxV2", "SandboxTimeoutRequest", "NewSecret"}
    decided |= {"NewVolume"}
    decided |= {"SandboxPauseRequest", "TemplateBuildRequestV3", "TemplateUpdateRequest"}
    decided |= {
        "SandboxForkRequest",
        "SandboxSnapshotRequest",
        "AssignTemplateTagsRequest",
        "DeleteTemplateTagsRequest",
    }
    assert requests - decided - {"SandboxRefreshRequest"} == {"TemplateRequestResponseV3"}


async def _refused(world: World, method: str, path: str, body: Json, why: str) -> None:
    response = await world.client.request(method, path, json=body)
    assert response.status_code == 400, response.text
    assert why in response.json()["message"]


@pytest.mark.parametrize("path", ["/sandboxes", "/v2/sandboxes"])
@pytest.mark.parametrize(
    ("body", "outcome"),
    [*CREATE.values(), *(({"network": body}, outcome) for body, outcome in NETWORK.values())],
    ids=[*CREATE, *(f"network.{name}" for name in NETWORK)],
)
async def test_a_create_honours_or_refuses_each_field(
    world: World, path: str, body: Json, outcome: Check | str
) -> None:
    body = {"templateID": "base", **body}
    if isinstance(outcome, str):
        await _refused(world, "POST", path, body, outcome)
        assert (await world.client.get("/v2/sandboxes")).json() == []
        return
    response = await world.client.post(path, json=body)
    assert response.status_code == 201, response.text
    answer = response.json()
    detail = (await world.client.get(f"/sandboxes/{answer['sandboxID']}")).json()
    assert outcome(Made(answer, detail, world))


@pytest.mark.parametrize(("body", "honoured"), EGRESS.values(), ids=EGRESS)
def test_what_a_sandbox_may_reach_follows_each_field(body: Json, honoured: Callable[[NetworkPolicy], bool]) -> None:
    created = NewSandboxV2.model_validate({"templateID": "base", "network": body, **body})
    assert honoured(order_from(created, 300, secure=True, idempotency_key=None).network)
    update = NetworkUpdate.model_validate(body)
    assert honoured(network_from(update.allow_internet_access, update))


@pytest.mark.parametrize("network", NEWER)
async def test_a_part_of_the_network_that_is_not_known_is_refused(world: World, network: Json) -> None:
    await _refused(world, "POST", "/v2/sandboxes", {"templateID": "base", "network": network}, "is not supported")
    await _refused(world, "PUT", f"/sandboxes/{await world.create()}/network", network, "is not supported")


@pytest.mark.parametrize(("envd", "ours"), [(process_pb, process), (filesystem_pb, filesystem)])
def test_no_field_of_the_guests_protocol_is_unknown(envd: ModuleType, ours: ModuleType) -> None:
    messages = [one for one in vars(envd).values() if isinstance(one, type) and one.__module__ == envd.__name__]
    for message in messages:
        if issubclass(message, Message):
            known = {field.name for field in dataclasses.fields(getattr(ours, message.__name__))}
            assert {field.name for field in message.desc().fields} <= known, message.__name__
    assert len(messages) > 15


@pytest.mark.parametrize(("method", "path", "body", "why"), OLDER)
async def test_what_cannot_be_kept_is_refused(world: World, method: str, path: str, body: Json, why: str) -> None:
    await _refused(world, method, path.replace("{id}", await world.create()), body, why)


@pytest.mark.parametrize(("method", "path"), [("POST", "/sandboxes/{id}/clone"), ("POST", "/v4/sandboxes")])
async def test_a_call_that_is_newer_than_the_server_is_not_a_sandbox_that_is_not_found(
    world: World, method: str, path: str
) -> None:
    await _refused(world, method, path.replace("{id}", await world.create()), {}, "not supported by this server (Atoll")


async def test_defaults_that_the_sdks_send_pass(world: World) -> None:
    await world.create(
        autoPause=False,
        autoPauseMemory=True,
        autoResume={"enabled": False},
        mcp=None,
        iam={},
        volumeMounts=[],
        network={"httpsPorts": [], "egressProxy": None, "rules": {}},
        metadata={"atoll.sid": "of the agent runtime", "atoll.memory": "512"},
    )
    sandbox_id = await world.create()
    for version in ("", "/v2"):
        body = {"timeout": 60, "memory": True}
        assert (await world.client.post(f"{version}/sandboxes/{sandbox_id}/connect", json=body)).status_code == 200
    body = {"timeout": 60, "autoPause": False}
    assert (await world.client.post(f"/sandboxes/{sandbox_id}/resume", json=body)).status_code == 409
