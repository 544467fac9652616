"""What a create call may say about the network, and what is refused."""

from __future__ import annotations

import json

import pytest

from atoll.model.errors import InvalidRequest
from atoll.model.network import HIDDEN, NetworkPolicy, headers_for


def test_a_policy_comes_back_from_json_as_it_went() -> None:
    policy = NetworkPolicy.checked(
        allow_internet=False,
        allow_out=["*.a.test", "1.2.3.4"],
        deny_out=["10.0.0.0/8"],
        dns_servers=["8.8.8.8"],
        rules={"A.test.": [{"X": "1"}, {"Y": "2"}]},
    )
    assert NetworkPolicy.from_json(json.loads(json.dumps(policy.as_json()))) == policy
    assert list(policy.rules) == ["a.test"]
    assert NetworkPolicy.from_json(None) == NetworkPolicy()


def test_a_rules_host_is_https_on_443_and_everything_else_is_written_out() -> None:
    header = [{"X": "1"}]
    origins = ["A.test.", "https://b.test", "http://*.c.test", "HTTPS://d.test:8443", "http://e.test:80"]
    policy = NetworkPolicy.checked(rules=dict.fromkeys(origins, header))
    assert list(policy.rules) == ["a.test", "b.test", "http://*.c.test:80", "https://d.test:8443", "http://e.test:80"]
    assert headers_for(policy.rules, "a.test") == {"X": "1"}
    assert headers_for(policy.rules, "a.test", "http", 80) == {}
    assert headers_for(policy.rules, "a.test", "https", 8443) == {}
    assert headers_for(policy.rules, "x.c.test", "http", 80) == {"X": "1"}
    assert headers_for(policy.rules, "x.c.test") == {}
    for wrong in ("ftp://a.test", "http://a.test/path", "http://a.test:0", "a.test:99999", "*", "http://*", ""):
        with pytest.raises(InvalidRequest, match="rules"):
            NetworkPolicy.checked(rules={wrong: header})


def test_what_answers_show_instead_of_a_secret_is_not_taken_for_one() -> None:
    with pytest.raises(InvalidRequest, match="hidden"):
        NetworkPolicy.checked(rules={"a.test": [{"X": HIDDEN}]})


def test_secrets_of_rules_stay_out_of_reprs() -> None:
    assert "s3cret" not in repr(NetworkPolicy.checked(rules={"a.test": [{"X": "s3cret"}]}))


@pytest.mark.parametrize("deny", [["0.0.0.0/0"], ["::/0", "1.2.3.4/0"]])
def test_names_in_allow_out_need_everything_else_denied(deny: list[str]) -> None:
    NetworkPolicy.checked(allow_out=["a.test"], deny_out=deny)
    NetworkPolicy.checked(allow_out=["a.test"], allow_internet=False)
    with pytest.raises(InvalidRequest, match=r"denyOut must hold 0\.0\.0\.0/0"):
        NetworkPolicy.checked(allow_out=["a.test"], deny_out=["::/0"])


@pytest.mark.parametrize("name", ["", "a b", "a:b", "é", "x" * 300, "Host", "content-length", "Transfer-Encoding"])
def test_headers_that_frame_a_request_or_cannot_be_sent_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="rules"):
        NetworkPolicy.checked(rules={"a.test": [{name: "v"}]})


def test_the_exact_rule_goes_before_the_longest_wildcard_and_none_are_merged() -> None:
    rules = {
        "a.b.test": [{"X": "exact"}],
        "*.b.test": [{"X": "near"}, {"x": "later", "Y": "y"}],
        "*.test": [{"Z": "far"}],
    }
    assert headers_for(rules, "a.b.test") == {"X": "exact"}
    assert headers_for(rules, "c.d.b.test") == {"x": "later", "Y": "y"}
    assert headers_for(rules, "b.test") == {"Z": "far"}
    assert headers_for(rules, "test") == {}
