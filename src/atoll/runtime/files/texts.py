"""Bytes of a file as text and back, without changing what was not edited: encoding and line ends survive. Pure.

Also runs in the sandbox's kernel, shipped with the editor by `skills.py`: the standard library only.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """What a path names."""

    FILE = "file"
    DIRECTORY = "directory"
    NOTHING = "nothing"


@dataclass(frozen=True, slots=True)
class Text:
    """A file's text with LF line ends, and how it was stored."""

    text: str
    encoding: str = "utf-8"
    bom: bytes = b""
    crlf: bool = False

    def encode(self, text: str) -> bytes:
        """`text` in the form of this file. Falls back to UTF-8 for characters that its encoding does not have."""
        stored = text.replace("\n", "\r\n") if self.crlf else text
        try:
            return self.bom + stored.encode(self.encoding)
        except UnicodeEncodeError:
            return stored.encode("utf-8")


_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))


def decode(data: bytes) -> Text:
    """The text of a file. Never raises: what is not UTF-8 is read byte by byte."""
    for bom, name in _BOMS:
        if data.startswith(bom):
            encoding, body = name, data[len(bom) :]
            break
    else:
        bom, encoding, body = b"", "utf-8", data
    try:
        text = body.decode(encoding)
    except UnicodeDecodeError:
        bom, encoding, text = b"", "latin-1", data.decode("latin-1")
    crlf = "\r\n" in text and text.count("\r\n") == text.count("\n")
    return Text(text.replace("\r\n", "\n") if crlf else text, encoding, bom, crlf)


def looks_binary(data: bytes) -> bool:
    """Whether `data` is not text: a null byte, or many control characters, at its beginning."""
    head = data[:8192]
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return False
    if b"\0" in head:
        return True
    control = sum(byte < 32 and byte not in b"\t\n\r\f\b\x1b" for byte in head)
    return control * 10 > len(head) * 3
