"""Messages of the service `process.Process` (E2B's numbers and names)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated

from atoll.wire.envd.messages import SINT32, UINT32, F, Message, message

SERVICE = "process.Process"


class Signal(IntEnum):
    SIGNAL_UNSPECIFIED = 0
    SIGNAL_SIGTERM = 15
    SIGNAL_SIGKILL = 9


@message
@dataclass(frozen=True, slots=True)
class PTYSize(Message):
    cols: Annotated[int, F(1, UINT32)] = 0
    rows: Annotated[int, F(2, UINT32)] = 0


@message
@dataclass(frozen=True, slots=True)
class PTY(Message):
    size: Annotated[PTYSize | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class ProcessConfig(Message):
    cmd: Annotated[str, F(1)] = ""
    args: Annotated[list[str], F(2)] = field(default_factory=list)
    envs: Annotated[dict[str, str], F(3)] = field(default_factory=dict)
    cwd: Annotated[str | None, F(4)] = None


@message
@dataclass(frozen=True, slots=True)
class ProcessSelector(Message):
    pid: Annotated[int | None, F(1, UINT32, oneof="selector")] = None
    tag: Annotated[str | None, F(2, oneof="selector")] = None


@message
@dataclass(frozen=True, slots=True)
class ProcessInfo(Message):
    config: Annotated[ProcessConfig | None, F(1)] = None
    pid: Annotated[int, F(2, UINT32)] = 0
    tag: Annotated[str | None, F(3)] = None


@message
@dataclass(frozen=True, slots=True)
class ListRequest(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class ListResponse(Message):
    processes: Annotated[list[ProcessInfo], F(1)] = field(default_factory=list)


@message
@dataclass(frozen=True, slots=True)
class StartRequest(Message):
    process: Annotated[ProcessConfig | None, F(1)] = None
    pty: Annotated[PTY | None, F(2)] = None
    tag: Annotated[str | None, F(3)] = None
    stdin: Annotated[bool | None, F(4)] = None
    """Unset means True: clients older than the flag expect an open stdin."""


@message
@dataclass(frozen=True, slots=True)
class StartEvent(Message):
    pid: Annotated[int, F(1, UINT32)] = 0


@message
@dataclass(frozen=True, slots=True)
class DataEvent(Message):
    stdout: Annotated[bytes | None, F(1, oneof="output")] = None
    stderr: Annotated[bytes | None, F(2, oneof="output")] = None
    pty: Annotated[bytes | None, F(3, oneof="output")] = None


@message
@dataclass(frozen=True, slots=True)
class EndEvent(Message):
    exit_code: Annotated[int, F(1, SINT32)] = 0
    exited: Annotated[bool, F(2)] = False
    status: Annotated[str, F(3)] = ""
    error: Annotated[str | None, F(4)] = None


@message
@dataclass(frozen=True, slots=True)
class KeepAlive(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class ProcessEvent(Message):
    start: Annotated[StartEvent | None, F(1, oneof="event")] = None
    data: Annotated[DataEvent | None, F(2, oneof="event")] = None
    end: Annotated[EndEvent | None, F(3, oneof="event")] = None
    keepalive: Annotated[KeepAlive | None, F(4, oneof="event")] = None


@message
@dataclass(frozen=True, slots=True)
class StartResponse(Message):
    event: Annotated[ProcessEvent | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class ConnectRequest(Message):
    process: Annotated[ProcessSelector | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class ConnectResponse(Message):
    event: Annotated[ProcessEvent | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class UpdateRequest(Message):
    process: Annotated[ProcessSelector | None, F(1)] = None
    pty: Annotated[PTY | None, F(2)] = None


@message
@dataclass(frozen=True, slots=True)
class UpdateResponse(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class ProcessInput(Message):
    stdin: Annotated[bytes | None, F(1, oneof="input")] = None
    pty: Annotated[bytes | None, F(2, oneof="input")] = None


@message
@dataclass(frozen=True, slots=True)
class SendInputRequest(Message):
    process: Annotated[ProcessSelector | None, F(1)] = None
    input: Annotated[ProcessInput | None, F(2)] = None


@message
@dataclass(frozen=True, slots=True)
class SendInputResponse(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class StreamInputStart(Message):
    process: Annotated[ProcessSelector | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class StreamInputData(Message):
    input: Annotated[ProcessInput | None, F(2)] = None


@message
@dataclass(frozen=True, slots=True)
class StreamInputRequest(Message):
    start: Annotated[StreamInputStart | None, F(1, oneof="event")] = None
    data: Annotated[StreamInputData | None, F(2, oneof="event")] = None
    keepalive: Annotated[KeepAlive | None, F(3, oneof="event")] = None


@message
@dataclass(frozen=True, slots=True)
class StreamInputResponse(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class SendSignalRequest(Message):
    process: Annotated[ProcessSelector | None, F(1)] = None
    signal: Annotated[Signal | int, F(2)] = Signal.SIGNAL_UNSPECIFIED


@message
@dataclass(frozen=True, slots=True)
class SendSignalResponse(Message):
    pass


@message
@dataclass(frozen=True, slots=True)
class CloseStdinRequest(Message):
    process: Annotated[ProcessSelector | None, F(1)] = None


@message
@dataclass(frozen=True, slots=True)
class CloseStdinResponse(Message):
    pass
