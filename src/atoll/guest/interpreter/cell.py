"""A cell under way in a Jupyter kernel: what of it has come so far, and where its lines go."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from atoll.guest.interpreter import jupyter

Sink = Callable[[dict[str, Any]], None]
"""Takes the lines of the client's stream, in order."""


@dataclass(slots=True)
class Cell:
    """A cell under way. `published` are the kinds of what came on `iopub`, `reply` is its outcome on `shell`."""

    sink: Sink
    done: asyncio.Future[None]
    published: set[str] = field(default_factory=set)
    idle: bool = False
    reply: jupyter.Published | None = None
    failed: bool = False
    timer: asyncio.TimerHandle | None = None
    displays_its_value: bool = False
    """R's kernel publishes the value of a cell as it does what the cell shows: the last of them is the value."""
    held: dict[str, Any] | None = None

    def put(self, message: jupyter.Published) -> None:
        self.published.add(message.kind)
        line = jupyter.line_of(message)
        if line is None:
            return
        if self.displays_its_value:
            self._release(is_value=False)
            if message.kind == "display_data" and "png" not in line:
                self.held = line
                return
        self.sink(line)

    def _release(self, *, is_value: bool) -> None:
        if self.held is not None:
            self.sink({**self.held, "is_main_result": is_value})
            self.held = None

    def put_unpublished_error(self) -> None:
        """A cell that Deno cannot parse fails in its reply alone, which does not say why."""
        if self.reply is None or self.reply.content.get("status") != "error" or "error" in self.published:
            return
        content = dict(self.reply.content)
        if content.get("evalue") == "Execution failed":
            content |= {"ename": "SyntaxError", "evalue": "the cell is neither JavaScript nor TypeScript"}
        self.put(replace(self.reply, kind="error", content=content))

    def finish(self) -> None:
        self._release(is_value="error" not in self.published)
        if self.timer is not None:
            self.timer.cancel()
        if not self.done.done():
            self.done.set_result(None)


def nowhere(_: dict[str, Any]) -> None:
    """Output that nobody asked for."""
