"""`atoll replay`: a recorded agent run in a sandbox, each action with its observation as it happens, then a verdict.

With `fetch_port` the page that the agent serves is fetched afterwards from outside the sandbox, through the edge.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.text import Text

from atoll.cli.run import check_lasting, platform_environ
from atoll.config import Settings
from atoll.runtime import E2BRuntime, JupyterRequirement, Step, Summary, event_to_dict, load_run, replay
from atoll.runtime.branching import BRANCHES
from atoll.runtime.events.base import Event
from atoll.runtime.replay import Outcome, needs_jupyter

MAX_SHOWN_LINES = 14
FETCH_S = 15.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says. `soft_timeout_s`: a command without new output for so long is left running."""

    template: str | None = None
    soft_timeout_s: float | None = None
    timeout_s: float | None = None
    fetch_port: int | None = None
    embedded: bool = False
    as_json: bool = False
    branch_from: int | None = None
    """The number of the event before which the run goes on in a sandbox of a checkpoint."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A page as a client outside the sandbox got it."""

    url: str
    status: int
    size: int
    title: str

    @property
    def ok(self) -> bool:
        return self.status == 200 and self.size > 0


def replay_file(settings: Settings, file: Path, options: Options) -> int:
    """Replays `file`; 0 when every action was carried out and the page was there. Raises AtollError, OSError."""
    events = load_run(file)
    jupyter = needs_jupyter(events)
    template = options.template or ("code-interpreter-v1" if jupyter else "base")
    console = Console(stderr=options.as_json, highlight=False)
    if options.branch_from is not None:
        check_lasting(settings, embedded=options.embedded)
    with platform_environ(settings, embedded=options.embedded):
        runtime = E2BRuntime(
            plugins=[JupyterRequirement()] if jupyter else [],
            template=template,
            soft_timeout_s=options.soft_timeout_s,
            sid=f"replay-{os.getpid()}",
            branches=settings.data_dir / BRANCHES,
        )
        try:
            asyncio.run(runtime.connect())
            console.print(f"[bold]{escape(file.name)}[/bold]: {len(events)} events, sandbox {runtime.sandbox_id}")
            if options.branch_from is None:
                summary = _replayed(events, runtime, console, options)
            else:
                summary, runtime = _branched(events, runtime, console, options)
            fetched = _fetch(runtime, options.fetch_port) if options.fetch_port is not None else None
        finally:
            runtime.close()
    if fetched is not None:
        page = f"HTTP {fetched.status}, {fetched.size} bytes" + (
            f", “{escape(fetched.title)}”" if fetched.title else ""
        )
        console.print(f"\n[bold cyan]fetch[/bold cyan] {escape(fetched.url)} from outside: {page}")
    good = not summary.errors and (fetched is None or fetched.ok)
    if options.as_json:
        print(json.dumps(_as_json(summary, fetched, good), indent=2))
    console.print(_verdict(summary, fetched, good))
    return 0 if good else 1


def _replayed(events: Sequence[Event], runtime: E2BRuntime, console: Console, options: Options) -> Summary:
    return replay(events, runtime, lambda step: show(console, step), timeout_s=options.timeout_s)


def _branched(
    events: Sequence[Event], runtime: E2BRuntime, console: Console, options: Options
) -> tuple[Summary, E2BRuntime]:
    """Replays up to the event, takes a checkpoint, goes on from it in another runtime, and takes one at the end."""
    number = options.branch_from or 0
    first = _replayed(events[:number], runtime, console, options)
    point = runtime.checkpoint(f"before event {number}")
    console.print(f"\n[bold]checkpoint {point.id}[/bold] before event {number}, with its {point.keeps}")
    following = E2BRuntime(
        plugins=[JupyterRequirement()] if point.jupyter else [],
        soft_timeout_s=options.soft_timeout_s,
        sid=f"replay-{os.getpid()}-{point.id}",
        checkpoint=point,
        branches=runtime.branches.directory,
    )
    runtime.close()
    try:
        asyncio.run(following.connect())
        second = _replayed(events[number:], following, console, options)
        end = following.checkpoint("end of the run")
    except BaseException:
        following.close()
        raise
    console.print(f"\n[bold]checkpoint {end.id}[/bold] at the end of the run")
    counts = {outcome: first.counts.get(outcome, 0) + second.counts.get(outcome, 0) for outcome in Outcome}
    steps = [*first.steps, *(replace(step, number=step.number + number) for step in second.steps)]
    return Summary(steps, first.seconds + second.seconds, counts), following


def show(console: Console, step: Step) -> None:
    event = step.event
    if step.outcome is Outcome.RUNNING:
        console.print(f"\n[bold cyan]{escape(str(getattr(event, 'action', '')))}[/bold cyan] {escape(subject(event))}")
    elif step.outcome is Outcome.SHOWN:
        who = event.source.value if event.source is not None else "message"
        console.print(f"\n[bold magenta]{who}[/bold magenta]")
        console.print(indented(str(getattr(event, "content", ""))))
    elif step.outcome is Outcome.EXECUTED and step.observation is not None:
        if step.observation.content.strip():
            console.print(indented(step.observation.content, style="dim"))
        console.print(f"  [green]{step.observation.observation}[/green] after {step.seconds:.2f} s")


def indented(text: str, style: str = "") -> Padding:
    return Padding(Text(clipped(text), style=style), (0, 0, 0, 2), expand=False)


def subject(event: Event) -> str:
    """What an action is about, in one line or a few."""
    path, command = str(getattr(event, "path", "")), str(getattr(event, "command", ""))
    if path:
        return f"{command} {path}".strip()
    for text in (command, getattr(event, "code", ""), getattr(event, "url", ""), getattr(event, "thought", "")):
        if text:
            return clipped(str(text))
    return ""


def clipped(text: str) -> str:
    lines = text.rstrip().splitlines()
    if len(lines) > MAX_SHOWN_LINES:
        hidden = len(lines) - MAX_SHOWN_LINES
        lines = [*lines[: MAX_SHOWN_LINES - 4], f"… {hidden} lines …", *lines[-4:]]
    return "\n".join(line if len(line) <= 400 else line[:400] + "…" for line in lines)


def _fetch(runtime: E2BRuntime, port: int) -> Fetched:
    """GETs / of `port` as any client outside would: by the sandbox's host name, or by the routing headers."""
    box = runtime.sandbox
    assert box is not None, "the runtime is connected"
    host = box.sandbox.get_host(port)
    server = os.environ.get("E2B_SANDBOX_URL")
    request = urllib.request.Request(server or f"https://{host}")
    if server:
        request.add_header("Host", host)
        request.add_header("E2b-Sandbox-Id", runtime.sandbox_id)
        request.add_header("E2b-Sandbox-Port", str(port))
    url = f"{'http' if server else 'https'}://{host}/"
    try:
        with urllib.request.urlopen(request, timeout=FETCH_S) as answer:
            status, body = answer.status, answer.read(1 << 20)
    except urllib.error.HTTPError as refusal:
        status, body = refusal.code, refusal.read(1 << 16)
    except OSError as error:
        return Fetched(url, 0, 0, str(error))
    title = re.search(rb"<title[^<>]*>([^<]{1,200})", body, re.I)
    return Fetched(url, status, len(body), title[1].decode(errors="replace").strip() if title else "")


def _verdict(summary: Summary, fetched: Fetched | None, good: bool) -> str:
    parts = [f"{summary.executed} actions replayed in {summary.seconds:.1f} s"]
    if summary.errors:
        parts.append(f"{len(summary.errors)} failed")
    if summary.differing:
        parts.append(f"{len(summary.differing)} observations differ from the recorded ones")
    if fetched is not None:
        parts.append("the page was fetched from outside" if fetched.ok else "the page could not be fetched")
    colour, word = ("green", "OK") if good else ("red", "FAILED")
    return f"\n[bold {colour}]{word}[/bold {colour}]: {escape(', '.join(parts))}"


def _as_json(summary: Summary, fetched: Fetched | None, good: bool) -> dict[str, Any]:
    return {
        "ok": good,
        "seconds": round(summary.seconds, 3),
        "steps": [
            {
                "number": step.number,
                "outcome": step.outcome.value,
                "reason": step.reason,
                "seconds": round(step.seconds, 3),
                "difference": step.difference,
                "event": event_to_dict(step.event),
                "observation": None if step.observation is None else event_to_dict(step.observation),
            }
            for step in summary.steps
        ],
        "fetched": None
        if fetched is None
        else {"url": fetched.url, "status": fetched.status, "size": fetched.size, "title": fetched.title},
    }
