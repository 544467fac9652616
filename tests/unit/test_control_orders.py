"""What a create may ask for: the pure checks, the quota, placement."""

from __future__ import annotations

import pytest
from e2b import Secret

from atoll.control.routes.ordering import order_from, states_from
from atoll.control.sandboxes.ids import new_sandbox_id, plain_id
from atoll.control.sandboxes.orders import CreateOrder, Policy, check_order
from atoll.control.sandboxes.quota import SandboxQuota
from atoll.model.errors import InvalidRequest, NotOffered, QuotaExceeded
from atoll.model.sandbox import SANDBOX_ID, Limits, SandboxState
from atoll.wire.rest.sandboxes import NewSandboxV2
from support.raising import raised


def _order(**fields) -> CreateOrder:
    return CreateOrder(**({"template": "base", "timeout_s": 10} | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"timeout_s": -1},
        {"timeout_s": 86401},
        {"metadata": {"a": "\0"}},
        {"metadata": {"\0": "a"}},
        {"metadata": {"a": "x" * 70_000}},
        {"metadata": {str(n): "é" * 100 for n in range(400)}},
        {"env_vars": {"A": "b\0c"}},
        {"env_vars": {"A=B": "c"}},
        {"env_vars": {"": "c"}},
        {"env_vars": {"A": "x" * 200_000}},
        {"mask_request_host": ""},
        {"mask_request_host": "a b"},
        {"mask_request_host": "a\r\nX-Evil: 1"},
    ],
)
def test_an_order_that_cannot_be_kept_is_refused(fields: dict) -> None:
    with pytest.raises(InvalidRequest):
        check_order(_order(**fields), Policy())


@pytest.mark.parametrize("fields", [{}, {"timeout_s": 0}, {"timeout_s": 86400}, {"mask_request_host": "x:${PORT}"}])
def test_an_order_within_the_limits_passes(fields: dict) -> None:
    assert raised(check_order, _order(**fields), Policy()) is None


def test_the_operator_sets_the_longest_timeout() -> None:
    with pytest.raises(InvalidRequest, match="between 0 and 60"):
        check_order(_order(timeout_s=61), Policy(max_timeout_s=60))


PLACEHOLDER = Secret.fill("api-key").replace("secrets", "vault")


@pytest.mark.parametrize(
    "extra",
    [
        {"iam": {"tokens": {"a": {"audience": "x", "tokenType": "jwt"}}}},
        {"network": {"egressProxy": {"address": "a:1"}}},
        {"network": {"httpsPorts": [443]}},
        {"network": {"rules": {"api.test": [{"transform": {"headers": {"Authorization": f"Bearer {PLACEHOLDER}"}}}]}}},
    ],
)
def test_what_is_not_offered_is_refused_by_name_when_it_is_asked_for(extra: dict) -> None:
    body = NewSandboxV2.model_validate({"templateID": "base"} | extra)
    with pytest.raises(NotOffered, match=r"not supported|secrets alone"):
        order_from(body, 300, secure=True, idempotency_key=None)


def test_empty_and_null_forms_of_the_same_fields_pass() -> None:
    body = NewSandboxV2.model_validate(
        {
            "templateID": "base",
            "mcp": None,
            "iam": {},
            "volumeMounts": [],
            "network": {"allowOut": [], "denyOut": ["0.0.0.0/0"], "rules": {}, "egressProxy": None, "newer": None},
            "metadata": None,
            "envVars": None,
            "timeout": None,
            "somethingNew": {"x": 1},
        }
    )
    order = order_from(body, 300, secure=True, idempotency_key=None)
    assert order.timeout_s == 300
    assert order.public_traffic
    assert order.network.allow_internet


def test_private_traffic_has_to_be_asked_for() -> None:
    body = NewSandboxV2.model_validate({"templateID": "base", "network": {"allowPublicTraffic": False}})
    assert not order_from(body, 300, secure=True, idempotency_key=None).public_traffic


def test_two_bodies_have_two_digests_and_the_same_body_has_one() -> None:
    def digest(**extra: object) -> str:
        body = NewSandboxV2.model_validate({"templateID": "base", **extra})
        return order_from(body, 300, secure=True, idempotency_key="k").request_digest

    assert digest() == digest()
    assert digest() != digest(timeout=1)


def test_states_come_as_a_comma_list_or_repeated() -> None:
    both = {SandboxState.RUNNING, SandboxState.PAUSED}
    assert states_from(None) == states_from(["running,paused"]) == states_from(["running", "paused"]) == both
    assert states_from(["paused"]) == {SandboxState.PAUSED}
    for bad in (["killed"], [","], ["running,x"]):
        with pytest.raises(InvalidRequest):
            states_from(bad)


SMALL = Limits(1, 64, 16, 16)


def test_a_quota_counts_from_the_order_to_the_end() -> None:
    quota = SandboxQuota(2)
    quota.take("a", "t", "n", SMALL)
    quota.take("b", "t", "n", SMALL)
    with pytest.raises(QuotaExceeded, match="may have 2"):
        quota.take("c", "t", "n", SMALL)
    quota.take("d", "other", "n", SMALL)
    quota.release("a")
    quota.release("a")
    quota.take("c", "t", "n", SMALL)
    assert quota.on_node("n") == 3
    assert quota.node_of("a") is None


def test_what_exists_is_counted_even_beyond_a_quota_that_was_lowered() -> None:
    quota = SandboxQuota(1)
    for name in "abc":
        quota.take(name, "t", "n", SMALL, beyond_quota=True)
    with pytest.raises(QuotaExceeded):
        quota.take("d", "t", "n", SMALL)


def test_sizes_add_up_for_a_team_and_for_a_node() -> None:
    quota = SandboxQuota(100, team=Limits(8, 1000, 1000, 1000), node=Limits(100, 1500, 1000, 1000))
    quota.take("a", "t", "n", Limits(1, 800, 10, 10))
    with pytest.raises(
        QuotaExceeded, match=r"team's sandboxes .* 1000 MiB of memory .* atoll\.memory.*ATOLL_TEAM_MEMORY"
    ):
        quota.take("b", "t", "n", Limits(1, 300, 10, 10))
    quota.take("b", "other", "n", Limits(1, 700, 10, 10))
    with pytest.raises(QuotaExceeded, match=r"machine's sandboxes .* 1500 MiB .* ATOLL_TOTAL_MEMORY_MIB"):
        quota.take("c", "third", "n", Limits(1, 1, 10, 10))
    assert quota.node_lacks("other node", Limits(1, 1, 10, 10)) == ""
    quota.release("a")
    quota.take("c", "t", "n", Limits(1, 800, 10, 10))


def test_ids_fit_into_host_names_and_old_suffixes_are_cut_off() -> None:
    made = {new_sandbox_id() for _ in range(100)}
    assert len(made) == 100
    assert all(SANDBOX_ID.fullmatch(one) and len(one) == 20 for one in made)
    assert plain_id("iabc123-6532622b") == "iabc123"
    for bad in ("", "-", "../etc", "ABCDEF", "abc\0def", "a" * 65, "%2e%2e"):
        assert plain_id(bad) is None
