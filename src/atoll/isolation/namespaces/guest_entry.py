"""What becomes of a zygote's children: the guest, found by its import path and loaded whole before the first fork."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from atoll.isolation.namespaces.child import GuestMain

# Modules that code may ask for by name at run time, when there is no file system to load them from.
_PRELOAD = (
    "encodings.ascii", "encodings.idna", "encodings.latin_1", "encodings.utf_16_le", "encodings.utf_16",
    "encodings.utf_32", "encodings.utf_8_sig", "encodings.unicode_escape", "encodings.raw_unicode_escape",
    "encodings.cp1252", "unicodedata", "stringprep", "traceback", "linecache", "tokenize",
)  # fmt: skip


class Guest(NamedTuple):
    """What becomes of a child. `prepare` runs first, with what its module's `begin` returned, in a child of the pool,
    before anybody knows whose it will be."""

    main: GuestMain
    prepare: Callable[[Any], None] | None


def load_guest(entry: str) -> Guest:
    """The guest by its import path `module:function`, with everything it may need later, run in if its module has a
    `warm_up`; `prepare` is its module's, if it has one. Raises ImportError."""
    module, _, name = entry.partition(":")
    for preload in _PRELOAD:
        importlib.import_module(preload)
    loaded = importlib.import_module(module)
    guest = Guest(getattr(loaded, name), getattr(loaded, "prepare", None))
    if (warm_up := getattr(loaded, "warm_up", None)) is not None:
        warm_up()
    return guest
