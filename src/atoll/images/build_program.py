"""`python -m atoll.images.build_program TEMPLATES_DIR NAME`: builds one built-in template in a process of its own.

A build moves much data about and takes minutes; nothing of that happens in a server. What it writes to standard output,
a JSON object a line, is read by `builds`:

    {"template", "stage", "fraction", "message"}   a step, see `recipes.recipe.Progress`
    {"error", "hint"}                              the last line of a build that failed
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from atoll.images.recipes.recipe import Progress
from atoll.images.store import TemplateStore
from atoll.model.errors import AtollError

MAX_ERROR = 4000
"""Characters of an error that are passed on: the end of a log may be part of it."""

_NICENESS = 10
"""Sandboxes that somebody works with go first."""

_OOM_SCORE = "500"
"""Where memory ends a build goes before the server that began it: it can be begun again."""


def main(templates_dir: str, name: str) -> int:
    """The exit status: 0 when the template is there."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what it began is cleared away
    os.nice(_NICENESS)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    try:
        TemplateStore(Path(templates_dir)).ensure_template(name, _print_progress)
    except AtollError as error:
        _print({"error": error.message[-MAX_ERROR:], "hint": error.hint[-MAX_ERROR:]})
        return 1
    except OSError as error:
        _print({"error": str(error)[-MAX_ERROR:], "hint": ""})
        return 1
    return 0


def _print_progress(step: Progress) -> None:
    _print(asdict(step))


def _print(line: dict[str, object]) -> None:
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
