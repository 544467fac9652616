"""A sandbox's description is plain data: it may be written down, sent, and read again, on this machine or another."""

from __future__ import annotations

import json
import pickle
from dataclasses import fields

import pytest

from atoll.model.network import NetworkPolicy
from atoll.model.sandbox import Limits, SandboxSpec
from atoll.model.volume import VolumeMount

POLICY = NetworkPolicy.checked(
    allow_out=["example.com"], deny_out=["0.0.0.0/0"], rules={"example.com": [{"Authorization": "rule-secret"}]}
)
FULL = SandboxSpec(
    "i1", "base", Limits(1, 2, 3, 4), {"A": "é"}, "envd-secret", "root", "/srv", "serve", True, "PEM", "a-layer", True,
    "gvisor", "traffic-secret", "x:${PORT}", POLICY, True, (VolumeMount("v1", "of-the-team", "/data"),), 7, 2,
    "index:0", ("nvidia.com/gpu=0",),
)  # fmt: skip


def test_the_full_spec_of_these_tests_leaves_nothing_at_its_default() -> None:
    plain = SandboxSpec("i1", "base")
    same = [one.name for one in fields(SandboxSpec) if getattr(FULL, one.name) == getattr(plain, one.name)]
    assert same == ["sandbox_id", "template_id"]


@pytest.mark.parametrize("spec", [FULL, SandboxSpec("i1", "base")])
def test_a_spec_comes_back_as_it_was(spec: SandboxSpec) -> None:
    assert SandboxSpec.from_json(json.loads(json.dumps(spec.as_json()))) == spec
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_what_the_host_keeps_from_a_sandbox_is_not_in_the_guests_part() -> None:
    inside = json.dumps(FULL.for_guest().as_json())
    assert "envd-secret" in inside
    for secret in ("rule-secret", "traffic-secret", "${PORT}", "gvisor", "of-the-team"):
        assert secret not in inside


def test_no_secret_is_printed() -> None:
    for secret in ("é", "envd-secret", "rule-secret", "traffic-secret"):
        assert secret not in repr(FULL)


@pytest.mark.parametrize("change", [{"unknown": 1}, {"limits": {"cpus": 1}}, {"network": {}}, {"env_vars": 7}])
def test_what_is_no_spec_is_refused(change: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        SandboxSpec.from_json({**FULL.as_json(), **change})
