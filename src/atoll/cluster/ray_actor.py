"""The one actor of a machine: keeps the process `atoll node serve` there alive, and reports how it is.

Its own end ends nothing: Ray starts it again, and it finds the process. A machine says by variables of its raylet where
the agent's data lies and which port it has: ATOLL_AGENT_DATA_DIR, ATOLL_AGENT_PORT.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atoll.cluster.agent_process import AgentProcess

LOOK_EVERY_S = 0.5
_PAUSE_S = 5.0
"""After a start that failed."""

_log = logging.getLogger("atoll.agent")


class NodeAgent:
    """Made by Ray. What it is given and what it returns is plain: the other side may be of another version."""

    def __init__(self, isolation: str) -> None:
        self._process = AgentProcess(_data_dir(os.environ), isolation, int(os.environ.get("ATOLL_AGENT_PORT", "0")))
        self._turn = threading.Lock()
        self._failure = ""
        threading.Thread(target=self._watch, name="agent", daemon=True).start()

    def report(self) -> dict[str, Any]:
        """`agent_process.Report` as plain values, and `failure`: why it does not start."""
        return {**asdict(self._process.report()), "failure": self._failure}

    def certify(self, identity: str) -> None:
        """See AgentProcess."""
        with self._turn:
            self._process.certify(identity)

    def _watch(self) -> None:
        pause = threading.Event()
        while True:
            try:
                with self._turn:
                    self._process.keep_alive()
                self._failure = ""
            except Exception as error:
                self._failure = str(error)
                _log.error("the agent does not start: %s", error)  # the line is Ray's log's
                pause.wait(_PAUSE_S)
            pause.wait(LOOK_EVERY_S)


def _data_dir(environ: Mapping[str, str]) -> Path:
    if chosen := environ.get("ATOLL_AGENT_DATA_DIR"):
        return Path(chosen).absolute()
    base = environ.get("XDG_DATA_HOME") or str(Path(environ.get("HOME", "/")) / ".local" / "share")
    return Path(base) / "atoll-agent"
