"""What a node is asked to make: a template's defaults and what a create call asks for, as one spec. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from atoll.control.sandboxes.orders import GPU_KEY, NO_NEW_PRIVILEGES_KEY, TIER_KEY
from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import Limits, SandboxRecord, SandboxSpec
from atoll.model.template import Template
from atoll.model.volume import VolumeMount

_NOTHING: Mapping[str, str] = MappingProxyType({})


def spec_of(
    sandbox_id: str,
    template: Template,
    limits: Limits,
    network: NetworkPolicy,
    *,
    access_token: str | None,
    env_vars: Mapping[str, str] = _NOTHING,
    metadata: Mapping[str, str] = _NOTHING,
    traffic_access_token: str | None = None,
    mask_request_host: str | None = None,
    volumes: tuple[VolumeMount, ...] = (),
    disk_mib_s: int | None = None,
    generation: int = 1,
) -> SandboxSpec:
    """A sandbox of `template` that belongs to nobody yet, unless the rest says whose it is."""
    return SandboxSpec(
        sandbox_id=sandbox_id,
        template_id=template.template_id,
        image_id=template.image_id,
        limits=limits,
        env_vars={**template.env_vars, **env_vars},
        access_token=access_token,
        default_user=template.default_user,
        default_workdir=template.default_workdir,
        start_cmd=template.start_cmd,
        interpreter=template.interpreter,
        tier=metadata.get(TIER_KEY) or None,
        traffic_access_token=traffic_access_token,
        mask_request_host=mask_request_host,
        network=network,
        volumes=volumes,
        disk_mib_s=disk_mib_s,
        gpu=metadata.get(GPU_KEY, template.gpu),
        generation=generation,
        no_new_privileges=template.no_new_privileges or NO_NEW_PRIVILEGES_KEY in metadata,
    )


def spec_for(
    record: SandboxRecord, template: Template, network: NetworkPolicy, disk_mib_s: int | None, generation: int = 1
) -> SandboxSpec:
    """What its create call asked for; of a later generation where it is begun anew under its id."""
    return spec_of(
        record.sandbox_id,
        template,
        record.limits,
        network,
        access_token=record.envd_access_token,
        env_vars=record.env_vars,
        metadata=record.metadata,
        traffic_access_token=record.traffic_access_token,
        mask_request_host=record.mask_request_host,
        volumes=record.volumes,
        disk_mib_s=disk_mib_s,
        generation=generation,
    )
