"""A heap that forks share: a page that a child does not write to stays the parent's, and costs it neither time nor
memory.

CPython writes also where nothing changes: references are counted in the objects themselves, and a new object is put
into a gap between old ones. `settle` stops the first where the interpreter can (since 3.12), and the second.
"""

from __future__ import annotations

import ctypes
import gc
import sys
import sysconfig
from collections.abc import Iterable
from types import CodeType

_POOL = 1 << 14
_FIRST_BLOCK = 48
"""Of a pool, of which the interpreter's allocator has some for each size of object."""
_LARGEST = 512
"""Bytes. What is larger is the C library's to place."""
_MOST = 4096
"""Gaps of one size that are filled, at most."""
_EMPTY = sys.getsizeof(b"")


def settle() -> list[bytes]:
    """What is there now stays for good, and what is made from now on comes on new pages. Once, before the first fork.

    Returns what fills the gaps: to be kept for as long as there are forks.
    """
    gc.collect()
    if counts_can_stand():
        _immortalise(_reachable(gc.get_objects()))
    gc.collect()
    fillers = _fill()
    gc.freeze()
    return fillers


def counts_can_stand() -> bool:
    """Whether references to some objects are not counted by this interpreter, as we know it."""
    without_lock = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # counts otherwise, and elsewhere in the object
    return sys.implementation.name == "cpython" and sys.version_info >= (3, 12) and not without_lock


def _reachable(roots: Iterable[object]) -> list[object]:
    """Those and what they refer to. Of code objects, which the collector knows nothing of, what functions use."""
    seen: set[int] = set()
    found: list[object] = []
    waiting = list(roots)
    own = {id(seen), id(found), id(waiting)}
    while waiting:
        one = waiting.pop()
        if id(one) in seen or id(one) in own:
            continue
        seen.add(id(one))
        found.append(one)
        if isinstance(one, CodeType):
            waiting += (one.co_consts, one.co_names, one.co_name, one.co_qualname, one.co_filename)
            waiting += (one.co_linetable, one.co_exceptiontable)
        else:
            waiting += gc.get_referents(one)
    return found


def _immortalise(objects: Iterable[object]) -> None:
    """An object whose count begins like that of None is not counted any more."""
    mark = ctypes.c_uint32.from_address(id(None)).value
    for one in objects:
        ctypes.c_uint32.from_address(id(one)).value = mark


def _fill() -> list[bytes]:
    """Objects of each size, until one had to be put into a new pool."""
    fillers: list[bytes] = []
    for size in range(48, _LARGEST + 1, 16):
        for _ in range(_MOST):
            one = bytes(size - _EMPTY)
            if id(one) % _POOL == _FIRST_BLOCK:
                break
            fillers.append(one)
    return fillers
