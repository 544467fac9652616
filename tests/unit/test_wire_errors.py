"""The one table from errors to answers is complete and keeps its promises to the SDKs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from atoll.control.sandboxes.orders import Policy
from atoll.model import errors
from atoll.wire.rest.errors import TABLE, error_reply, plain_error

RETRIED_BY_SDKS = {429, 502, 503, 504}


def _tree(root: type) -> Iterator[type]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child)


def test_every_class_of_the_error_tree_has_an_entry_of_its_own() -> None:
    assert set(_tree(errors.AtollError)) == set(TABLE)


@pytest.mark.parametrize("kind", [kind for kind in TABLE if issubclass(kind, errors.CallerError)])
def test_the_callers_faults_are_4xx(kind: type) -> None:
    assert 400 <= TABLE[kind].status < 500


@pytest.mark.parametrize("kind", [kind for kind in TABLE if issubclass(kind, errors.PlatformError)])
def test_our_faults_are_5xx_and_not_retried_blindly(kind: type) -> None:
    assert TABLE[kind].status >= 500
    entry = TABLE[kind]
    passes_by_itself = entry.status in RETRIED_BY_SDKS and entry.headers.get("Should-Retry") != "false"
    assert passes_by_itself == (kind is errors.TemplateNotReady)
    # After less the SDKs ask once more within their time-out of 60 s and then show that, not the message.
    assert not passes_by_itself or Policy().template_wait_s + int(TABLE[kind].headers["Retry-After"]) > 60


def test_a_full_quota_tells_the_sdk_not_to_try_again() -> None:
    reply = error_reply(errors.QuotaExceeded("full"))
    assert reply.status == 429
    assert reply.headers["Should-Retry"] == "false"


def test_an_answer_has_e2bs_form_with_the_hint_in_the_message() -> None:
    body = json.loads(error_reply(errors.InvalidRequest("wrong", hint="do this")).body)
    assert body == {"code": 400, "message": "wrong (do this)", "error_code": "invalid_request"}


def test_a_foreign_exception_tells_nothing_of_itself() -> None:
    reply = error_reply(RuntimeError("the secret is 12345"))
    assert reply.status == 500
    assert b"12345" not in reply.body


def test_a_class_that_was_derived_elsewhere_answers_as_its_base() -> None:
    class Special(errors.SandboxNotFound):
        pass

    assert error_reply(Special("i1")).status == 404


def test_an_error_without_a_class_has_no_error_code() -> None:
    assert json.loads(plain_error(405, "no").body) == {"code": 405, "message": "no"}
