"""`${e2b.secrets.NAME}` in the headers of egress rules: what `Secret.fill` of the SDKs writes. Pure.

A policy is kept as it was written, with the names; only the node's copy has the values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace

from atoll.model.network import NetworkPolicy

_PLACEHOLDER = re.compile(r"\$\{e2b\.secrets\.([^{}\x00-\x1f\x7f]{1,128})\}")
ANY = "${e2b."


def is_all_known(value: str) -> bool:
    """Whether every placeholder in a header's value is a secret's."""
    return ANY not in _PLACEHOLDER.sub("", value)


def names_in(network: NetworkPolicy) -> set[str]:
    """The secrets that it uses, by canonical name or id."""
    values = (value for sets in network.rules.values() for headers in sets for value in headers.values())
    return {name.lower() for value in values if ANY in value for name in _PLACEHOLDER.findall(value)}


def filled(network: NetworkPolicy, values: Mapping[str, str]) -> NetworkPolicy:
    """With the values in place. A header with a secret that is not there is left out: no request carries it."""

    def fill(value: str) -> str | None:
        if any(name.lower() not in values for name in _PLACEHOLDER.findall(value)):
            return None
        return _PLACEHOLDER.sub(lambda found: values[found[1].lower()], value)

    rules = {origin: tuple(_each(headers, fill) for headers in sets) for origin, sets in network.rules.items()}
    return replace(network, rules=rules)


def filled_size(network: NetworkPolicy, values: Mapping[str, str]) -> int:
    """How many characters all headers have once they are filled."""
    written = [one for sets in network.rules.values() for headers in sets for pair in headers.items() for one in pair]
    named = [name.lower() for text in written for name in _PLACEHOLDER.findall(text)]
    return sum(map(len, written)) + sum(len(values.get(name, "")) for name in named)


def _each(headers: Mapping[str, str], fill: Callable[[str], str | None]) -> dict[str, str]:
    return {name: new for name, value in headers.items() if (new := fill(value)) is not None}
