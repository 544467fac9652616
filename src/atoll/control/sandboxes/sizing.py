"""How large a sandbox may be: the template's limits, what the create call asks for, and the operator's maximum. Pure.

The protocol has no field for it, so a call asks by metadata: `atoll.cpu` (processors), `atoll.memory` (MiB),
`atoll.disk` (MiB), `atoll.pids` (processes), as decimal numbers. Asking for more than the maximum is refused; a
template that is larger than the maximum is made at the maximum. A disk's size is rounded up (`model.disk_sizes`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from atoll.model.disk_sizes import rounded_disk_mib
from atoll.model.errors import InvalidRequest
from atoll.model.sandbox import Limits

KEYS: Mapping[str, str] = {
    "atoll.cpu": "cpu_count",
    "atoll.memory": "memory_mib",
    "atoll.disk": "disk_mib",
    "atoll.pids": "pids",
}
_LEAST = Limits(cpu_count=1, memory_mib=64, disk_mib=16, pids=16)
"""Below these a sandbox does not even start its guest and a shell."""
_DIGITS = 9


def limits_for(template: Limits, metadata: Mapping[str, str], maximum: Limits | None) -> Limits:
    """`maximum` None: as large as asked for. Raises InvalidRequest naming the key that is wrong."""
    chosen = template
    if maximum is not None:
        chosen = Limits(**{name: min(getattr(template, name), getattr(maximum, name)) for name in Limits.__slots__})
    for key, name in KEYS.items():
        if key in metadata:
            most = getattr(maximum, name) if maximum is not None else None
            chosen = replace(chosen, **{name: _asked(key, metadata[key], getattr(_LEAST, name), most)})
    return replace(
        chosen, disk_mib=rounded_disk_mib(chosen.disk_mib, maximum.disk_mib if maximum is not None else None)
    )


def _asked(key: str, text: str, least: int, most: int | None) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        raise InvalidRequest(f"metadata {key}: a whole number is needed, not {text[:40]!r}")
    number = int(text)
    if number < least:
        raise InvalidRequest(f"metadata {key}: {number} is less than the least possible, {least}")
    if most is not None and number > most:
        raise InvalidRequest(
            f"metadata {key}: {number} is more than this server allows one sandbox, {most}",
            hint="ask for less; its operator may raise ATOLL_MAX_CPU, _MEMORY_MIB, _DISK_MIB or _PIDS",
        )
    return number
