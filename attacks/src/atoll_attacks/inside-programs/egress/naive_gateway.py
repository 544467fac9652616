"""Reads the same bytes as a gateway does that was written with an expression: on the host, as a control."""

from __future__ import annotations

import re

from inside import ARGUMENTS

_HOST = re.compile(rb"^host[ \t]*:[ \t]*([^\r\n]*?)[ \t]*\r?$", re.I | re.M)
_HEADER = re.compile(rb"([^:\s]+)[ \t]*:[ \t]*([^\r\n]*?)[ \t]*")

if ARGUMENTS[0] == "blanks_behind_host":
    _HOST.search(b"GET / HTTP/1.1\r\nHost:" + b" \t" * 16000 + b"\rx\r\n\r\n")
else:
    for _ in range(7 * 20 * 20):
        _HEADER.fullmatch(b"A:" + b" " * 8000 + b"\rb")
