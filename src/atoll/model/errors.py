"""The error tree: one place, drawn here, translated once per border.

    AtollError
    ├── CallerError            the request is wrong; the caller can mend it          HTTP 4xx
    │   ├── InvalidRequest     malformed or out of range                             400
    │   ├── Unauthorized       no key, wrong key                                     401
    │   ├── Forbidden          right key, wrong team or policy                       403
    │   ├── NotFound           no such sandbox, template, …                          404
    │   │   ├── SandboxNotFound
    │   │   └── TemplateNotFound
    │   ├── Conflict           the object is in a state that forbids it              409
    │   │   └── MemoryLost     the memory of a paused sandbox cannot be used, its disk can
    │   ├── QuotaExceeded      the team or the machine has no room                   429
    │   │   └── RateExceeded   too many calls in a short time: later they pass       429
    │   └── NotOffered         E2B has it, this Atoll does not (yet)                 400 with the reason
    ├── SandboxGone            it existed and is no more (killed, timed out, died)
    ├── PortClosed             the sandbox runs, nothing listens on that port
    └── PlatformError          our fault or the machine's                            HTTP 5xx
        ├── CreateFailed       a sandbox could not be made; everything was undone
        ├── GuestUnresponsive  a sandbox's guest does not answer, and should have before this         503
        ├── BuildFailed        a template could not be built; nothing half-built is left
        ├── NodeUnreachable    a node does not answer; what was asked of it may or may not have been done
        ├── StateLost          the database does not fit what runs or was done: a person has to decide
        ├── TemplateNotReady   it is still being built: the message says how far it is              503
        ├── StorageFull        the database or a node's disk has no room: nothing was changed               507
        └── BackendUnavailable the isolation tier does not work on this machine; `hint` says what to do

A command that exits non-zero is a *result*, never one of these.
An error class is never chosen by text that a sandbox sent.
"""

from __future__ import annotations


class AtollError(Exception):
    """Base of everything Atoll raises on purpose. `message` is for people: object, cause, what to do."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(f"{message} ({hint})" if hint else message)
        self.message = message
        self.hint = hint


class CallerError(AtollError):
    """The request cannot be carried out as it was put."""


class InvalidRequest(CallerError):
    """Malformed, contradictory or out of range."""


class Unauthorized(CallerError):
    """The API key is missing or unknown."""


class Forbidden(CallerError):
    """The caller is known but may not do this."""


class NotFound(CallerError):
    """The named object does not exist, or not for this team."""


class SandboxNotFound(NotFound):
    """No sandbox of that id is known to this team."""

    def __init__(self, sandbox_id: str, detail: str = "") -> None:
        super().__init__(f"sandbox {sandbox_id!r} not found" + (f": {detail}" if detail else ""))
        self.sandbox_id = sandbox_id


class TemplateNotFound(NotFound):
    """No template of that id or name exists."""

    def __init__(self, name: str, known: tuple[str, ...] = (), *, hint: str = "") -> None:
        hint = hint or (f"known templates: {', '.join(known)}" if known else "")
        super().__init__(f"template {name!r} not found", hint=hint)
        self.name = name


class Conflict(CallerError):
    """The object's state forbids this (for example: already paused)."""


class MemoryLost(Conflict):
    """What ran in a paused sandbox cannot go on; a new guest can be started on its disk."""


class QuotaExceeded(CallerError):
    """No room: too many sandboxes for the team or for the machine."""


class RateExceeded(QuotaExceeded):
    """Too many calls with one key in a short time. The same call passes later."""


class NotOffered(CallerError):
    """Part of E2B's protocol that this Atoll does not offer; the message says why or since when it will."""


class SandboxGone(AtollError):
    """The sandbox ended (killed, timed out, or its guest died) while or before it was used."""

    def __init__(self, sandbox_id: str, reason: str = "") -> None:
        super().__init__(f"sandbox {sandbox_id!r} is gone" + (f": {reason}" if reason else ""))
        self.sandbox_id = sandbox_id
        self.reason = reason


class PortClosed(AtollError):
    """The sandbox runs but nothing listens on the port that was dialled."""

    def __init__(self, sandbox_id: str, port: int) -> None:
        super().__init__(f"sandbox {sandbox_id!r} is running but port {port} is not open")
        self.sandbox_id = sandbox_id
        self.port = port


class PlatformError(AtollError):
    """Atoll or the machine failed; the caller did nothing wrong."""


class CreateFailed(PlatformError):
    """A sandbox could not be made. Whatever had been made for it is gone again."""


class GuestUnresponsive(PlatformError):
    """A sandbox's guest does not answer, so what was asked for could not be done properly. The sandbox is as before."""


class BuildFailed(PlatformError):
    """A template could not be built. The message ends with the log's tail, the hint says where the whole log is."""


class StateLost(PlatformError):
    """The database is empty, or older than what runs here. A server that started on it would destroy what it lacks."""


class NodeUnreachable(PlatformError):
    """A node does not answer. Whether it did what was asked is unknown."""


BEING_BUILT = "is being built"
"""Stands in every message of TemplateNotReady: through the SDKs a client has nothing else to recognise it by."""


class TemplateNotReady(PlatformError):
    """A template is still being built, and goes on being built. The message says how far it is."""


class StorageFull(PlatformError):
    """What was asked for could not be written down, so it was not done. Whatever was answered before is kept."""


class BackendUnavailable(PlatformError):
    """An isolation tier cannot work on this machine."""
