"""What a terminal's byte stream looks like to a person."""

from __future__ import annotations

import pytest

from atoll.runtime.shell.terminal import render


@pytest.mark.parametrize(
    ("raw", "seen"),
    [
        ("plain\r\ntext\r\n", "plain\ntext\n"),
        ("  indented \r\n", "  indented \n"),
        ("\x1b[31mred\x1b[0m\r\n", "red\n"),
        ("\x1b]0;title\x07x", "x"),
        ("10%\r50%\r100%\r\ndone", "100%\ndone"),
        ("long line\rshort\r\n", "shortline\n"),
        ("long line\r\x1b[Kshort\r\n", "short\n"),
        ("abc\b\bX\r\n", "aXc\n"),
        ("a\tb\r\x1b[2Kc\r\n", "c\n"),
        ("one\r\ntwo\x1b[1A\rONE\r\n", "ONE\ntwo"),
        ("before\r\n\x1b[?1049hfull screen\x1b[2;1Hmore\x1b[?1049lafter\r\n", "before\nafter\n"),
        ("before\r\n\x1b[?1049hfull\x1b[2;1Hscreen", "full\nscreen"),
        ("x\x1b[", "x"),
        ("bell\x07\r\n", "bell\n"),
        ("abcdef\x1b[3D\x1b[2P\r\n", "abcf\n"),
        ("\x1b[2J\x1b[Hfresh\r\n", "fresh\n"),
    ],
)
def test_a_stream_becomes_what_it_shows(raw: str, seen: str) -> None:
    assert render(raw) == seen


def test_scrollback_is_kept_whole() -> None:
    lines = [f"line {number}" for number in range(100_000)]
    assert render("\r\n".join(lines) + "\r\n") == "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "bomb", ["\x1b[999999999C", "\x1b[999999999@", "\x1b[999999999;999999999H", "\x1b[9999999L", "\x1b[99999999B"]
)
def test_a_hostile_sequence_cannot_blow_up_memory(bomb: str) -> None:
    assert len(render(bomb + "x")) < 100_000
