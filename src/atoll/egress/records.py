"""What left (or tried to leave) each sandbox: one record per connection and per DNS question, newest kept.

In memory: records end with the sandbox and with the server.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime

from atoll.egress.policy import Verdict

KEPT = 2000
"""Records kept per sandbox; older ones go."""


@dataclass(slots=True)
class EgressRecord:
    """One connection (`protocol` "tcp") or question ("dns"). Bytes are as counted by the gateway, without headers.

    `name` is what the connection declared (SNI, Host), or the name asked or answered; "" if none. `rewritten`: a
    rule added headers, for which TLS was terminated in the gateway. Mutable while it is open.
    """

    time: datetime
    protocol: str
    source_address: str
    source_port: int
    address: str
    port: int
    name: str
    verdict: Verdict
    bytes_out: int = 0
    bytes_in: int = 0
    rewritten: bool = False
    closed_at: datetime | None = None


class Ledger:
    """The records of one sandbox, bounded."""

    def __init__(self) -> None:
        self._records: deque[EgressRecord] = deque(maxlen=KEPT)
        self.total = 0
        self.denied = 0
        self.turned_away = 0
        """Connections beyond the limit: counted only, so that a flood cannot push other records out."""

    def add(self, record: EgressRecord) -> EgressRecord:
        self._records.append(record)
        self.total += 1
        self.denied += not record.verdict.allowed
        return record

    def records(self) -> list[EgressRecord]:
        """Oldest first."""
        return list(self._records)
