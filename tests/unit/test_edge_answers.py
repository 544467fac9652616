"""The edge's own answers."""

from __future__ import annotations

import json

from e2b.exceptions import is_sandbox_not_found_message, is_sandbox_port_not_open_message

from atoll.edge import answers
from atoll.edge.head import RequestHead, read_request


def browser() -> RequestHead:
    return read_request(b"GET", b"/", "1.1", [(b"host", b"h"), (b"accept", b"text/html,*/*")], keep_alive=True)


def body_of(answer: bytes) -> bytes:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"
    return body


def test_the_published_sdk_understands_both_texts() -> None:
    not_found = json.loads(body_of(answers.sandbox_not_found("abcd").render(None, keep_alive=True)))
    closed = json.loads(body_of(answers.port_closed("abcd", 80).render(None, keep_alive=True)))
    assert is_sandbox_not_found_message(not_found["message"])
    assert is_sandbox_port_not_open_message(closed["message"])
    assert not is_sandbox_not_found_message(closed["message"])
    assert not_found["code"] == closed["code"] == 502


def test_a_lost_connection_is_not_mistaken_for_a_lost_sandbox() -> None:
    message = json.loads(body_of(answers.connection_lost("abcd", 80).render(None, keep_alive=True)))["message"]
    assert not is_sandbox_not_found_message(message)
    assert not is_sandbox_port_not_open_message(message)


def test_nothing_from_outside_becomes_markup() -> None:
    page = body_of(
        answers.Answer(502, "<script>", (("sandboxId", "<b>"),), hint="<i>").render(browser(), keep_alive=True)
    )
    for mark in (b"<script>", b"<b>", b"<i>"):
        assert mark not in page


def test_a_head_request_gets_the_head_alone() -> None:
    head = read_request(b"HEAD", b"/", "1.1", [(b"host", b"h")], keep_alive=True)
    assert answers.sandbox_not_found("abcd").render(head, keep_alive=True).endswith(b"\r\n\r\n")
