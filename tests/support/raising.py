"""What a call raises, as a value: for tests of what may be refused and of nothing worse."""

from __future__ import annotations

from collections.abc import Callable


def raised(call: Callable[..., object], *arguments: object) -> type[Exception] | None:
    """The kind of exception, None for none."""
    try:
        call(*arguments)
    except Exception as error:
        return type(error)
    return None
