"""How the end of a process because memory ran out is worded in its sandbox's log. Pure."""

from __future__ import annotations

from typing import Any

from atoll.model.sandbox import OomKill


def oom_note(victim: OomKill) -> dict[str, Any]:
    """A body for the guest's `/notes`. The fields name the process for programs that read logs."""
    fields = {"logger": "kernel", "event_type": "oom_kill"}
    who = "an unknown process"
    if victim.name is not None:
        who = victim.name
        fields["process"] = victim.name
    if victim.pid is not None:
        who += f" (process {victim.pid})"
        fields["pid"] = str(victim.pid)
    had = ""
    if victim.memory_bytes is not None:
        memory_mb = victim.memory_bytes >> 20
        had = f", which used {memory_mb} MiB"
        fields["memory_mb"] = str(memory_mb)
    others = f"; {victim.others} more before" if victim.others else ""
    message = f"out of memory: the kernel ended {who}{had}{others}"
    return {"level": "error", "message": message, "fields": fields}
