"""SandboxSpec and GuestConfig as JSON-able values, for the way into the zygote and the sandbox."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from atoll.isolation.linux.run_records import limits_to_json
from atoll.model.sandbox import GuestConfig, Limits, SandboxSpec


def limits_from_json(value: dict[str, int]) -> Limits:
    """Raises TypeError for unknown fields."""
    return Limits(**value)


def spec_to_json(spec: SandboxSpec) -> dict[str, Any]:
    """The inverse of `spec_from_json`. Paths become absolute."""
    guest = {name: getattr(spec.guest, name) for name in GuestConfig.__slots__}
    guest["env_vars"] = dict(spec.guest.env_vars)
    guest["limits"] = limits_to_json(spec.guest.limits)
    return {
        "sandbox_id": spec.sandbox_id,
        "lower_dirs": [str(path.absolute()) for path in spec.lower_dirs],
        "state_dir": str(spec.state_dir.absolute()),
        "limits": limits_to_json(spec.limits),
        "guest": guest,
    }


def guest_from_json(value: dict[str, Any]) -> GuestConfig:
    """Raises TypeError for unknown fields."""
    return GuestConfig(**{**value, "limits": limits_from_json(value["limits"])})


def spec_from_json(value: dict[str, Any]) -> SandboxSpec:
    """Raises KeyError or TypeError for something that `spec_to_json` did not make."""
    return SandboxSpec(
        sandbox_id=value["sandbox_id"],
        lower_dirs=tuple(Path(path) for path in value["lower_dirs"]),
        state_dir=Path(value["state_dir"]),
        limits=limits_from_json(value["limits"]),
        guest=guest_from_json(value["guest"]),
    )
