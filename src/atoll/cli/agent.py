"""`atoll agent`: a model works on a task in a sandbox, or a recorded run is done again and compared; all is logged.

Exit codes: 0 the model finished, or every observation is as recorded; 1 otherwise, with the reason.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from atoll.agent import AgentLoop, Budget, ChatModel, End, Limits, Session, SessionHead
from atoll.agent.loop import Result
from atoll.agent.tools import offered
from atoll.cli.replay import clipped, indented, show, subject
from atoll.cli.run import platform_environ
from atoll.config import Settings
from atoll.model.errors import InvalidRequest
from atoll.runtime import (
    AgentRuntimeDisconnectedError,
    CmdOutputObservation,
    E2BRuntime,
    JupyterRequirement,
    Observation,
    SandboxConfig,
    Step,
    Summary,
    load_run,
    replay,
)
from atoll.runtime.events.base import Action, Event, EventSource
from atoll.runtime.replay import Outcome, needs_jupyter

GONE = (
    "The sandbox of the earlier part of this session is gone. This one is new: files, variables and programs that you "
    "made before are not there."
)


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line says."""

    task: str | None = None
    model: str | None = None
    base_url: str | None = None
    session: Path | None = None
    resume: Path | None = None
    replay: Path | None = None
    template: str | None = None
    jupyter: bool = False
    steps: int = 100
    budget: Budget = field(default_factory=Budget)
    soft_timeout_s: float | None = None
    timeout_s: float | None = None
    keep: bool = False
    as_json: bool = False


def agent(settings: Settings, options: Options) -> int:
    """Carries out the command. Raises AtollError, OSError."""
    chosen = [name for name in ("task", "replay", "resume") if getattr(options, name)]
    if options.replay is not None and len(chosen) > 1:
        raise InvalidRequest("a replay has no task of its own and nothing to resume")
    if not chosen:
        raise InvalidRequest("say what is to be done: a task, --resume FILE, or --replay FILE")
    return _replay(settings, options) if options.replay is not None else _work(settings, options)


# ---------------------------------------------------------------------------------------------------------- a model


def _work(settings: Settings, options: Options) -> int:
    console = Console(stderr=options.as_json, highlight=False)
    with _session(settings, options) as session:
        head = session.head
        template = options.template or head.template or ("code-interpreter-v1" if options.jupyter else "base")
        chat = ChatModel(options.model or head.model, base_url=options.base_url)
        with platform_environ(settings):
            runtime, more = _runtime(session, options, template)
            try:
                console.print(
                    f"[bold]session[/bold] {escape(str(session.path))}, "
                    f"sandbox {runtime.sandbox_id}, model {escape(chat.model)}"
                )
                tools = offered(jupyter=runtime.has_jupyter, browser=template.startswith("browser"))
                limits = Limits(options.steps, options.budget)
                loop = AgentLoop(session, runtime, chat, tools, limits, lambda event: _print_event(console, event))
                result = loop.run(more)
            finally:
                runtime.close()  # the sandbox stays for a resumed session; else it ends by itself
            if result.end is End.FINISHED and not options.keep and runtime.sandbox is not None:
                runtime.sandbox.sandbox.kill()
    _report(console, session, result, options)
    return 0 if result.end is End.FINISHED else 1


def _session(settings: Settings, options: Options) -> Session:
    if options.resume is not None:
        return Session.resume(options.resume)
    if not options.model:
        raise InvalidRequest("a task needs a model: --model NAME, with --base-url for an endpoint of your own")
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    path = options.session or settings.data_dir / "sessions" / f"{name}.jsonl"
    return Session.create(path, SessionHead(f"agent-{name}", options.task or "", options.model, options.template))


def _runtime(session: Session, options: Options, template: str) -> tuple[E2BRuntime, str | None]:
    """(a connected runtime, a note for the model): the session's sandbox, or a new one where it is gone."""
    more = options.task if session.events else None

    def made(attach: bool) -> E2BRuntime:
        runtime = E2BRuntime(
            SandboxConfig(keep_runtime_alive=True),
            sid=session.head.sid,
            template=template,
            plugins=[JupyterRequirement()] if options.jupyter or template.startswith("code-interpreter") else [],
            soft_timeout_s=options.soft_timeout_s,
            attach_to_existing=attach,
        )
        runtime.connect_sync()
        return runtime

    if session.events:
        try:
            return made(attach=True), more
        except AgentRuntimeDisconnectedError:
            return made(attach=False), "\n\n".join(filter(None, [GONE, more]))
    return made(attach=False), None


def _print_event(console: Console, event: Event) -> None:
    if isinstance(event, Observation):
        if event.content.strip():
            console.print(indented(event.content, style="dim"))
        code = f", exit code {event.exit_code}" if isinstance(event, CmdOutputObservation) else ""
        console.print(f"  [green]{event.observation}[/green]{code}")
    elif isinstance(event, Action):
        who = event.source.value if event.source is not None else ""
        if thought := str(getattr(event, "thought", "")):
            console.print(indented(thought))
        text = subject(event) or clipped(str(getattr(event, "content", "")))
        console.print(f"\n[bold cyan]{event.action}[/bold cyan] [magenta]{who}[/magenta] {escape(text)}")


def _report(console: Console, session: Session, result: Result, options: Options) -> None:
    if options.as_json:
        found = {**asdict(result), "session": str(session.path), "end": result.end.value}
        print(json.dumps(found, indent=2))
    good = result.end is End.FINISHED
    cost = f", cost {result.cost:.4f}" if result.cost else ""
    console.print(
        f"\n[bold {'green' if good else 'red'}]{result.end.value}[/]: {escape(result.message.strip())}\n"
        f"{result.steps} steps, {result.usage.prompt_tokens} + {result.usage.completion_tokens} tokens{cost}"
    )
    if not good:
        console.print(f"to go on: atoll agent --resume {escape(str(session.path))}")


# ---------------------------------------------------------------------------------------------------------- a replay


def _replay(settings: Settings, options: Options) -> int:
    assert options.replay is not None
    events = load_run(options.replay)
    jupyter = options.jupyter or needs_jupyter(events)
    template = options.template or ("code-interpreter-v1" if jupyter else "base")
    console = Console(stderr=options.as_json, highlight=False)
    name = f"replay-{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    path = options.session or settings.data_dir / "sessions" / f"{name}.jsonl"
    with (
        Session.create(path, SessionHead(name, f"replay of {options.replay.name}", "", template)) as session,
        platform_environ(settings),
    ):
        runtime = E2BRuntime(
            sid=name,
            template=template,
            plugins=[JupyterRequirement()] if jupyter else [],
            soft_timeout_s=options.soft_timeout_s,
        )
        with runtime:
            summary = replay(
                events, runtime, lambda step: _replayed(console, session, step), timeout_s=options.timeout_s
            )
    if options.as_json:
        print(json.dumps(comparison(summary, str(path)), indent=2))
    _print_comparison(console, summary)
    return 0 if not summary.differing and not summary.errors else 1


def _replayed(console: Console, session: Session, step: Step) -> None:
    show(console, step)
    if step.outcome is Outcome.SHOWN:
        session.add(step.event)
    elif step.outcome is Outcome.EXECUTED and step.observation is not None:
        action = session.add(step.event)
        session.add(replace(step.observation, cause=action.id, source=EventSource.ENVIRONMENT))


def comparison(summary: Summary, session: str) -> dict[str, Any]:
    """A replay as data: for each action whether its observation is the recorded one, and how it differs."""
    rows = [
        {
            "event": step.event.id if step.event.id >= 0 else step.number,
            "action": getattr(step.event, "action", ""),
            "seconds": round(step.seconds, 4),
            "verdict": verdict(step),
            "difference": step.difference or "",
        }
        for step in summary.steps
        if step.outcome is Outcome.EXECUTED
    ]
    rate = summary.executed / summary.seconds if summary.seconds else 0.0
    return {"session": session, "actions": rows, "actions_per_second": round(rate, 2)}


def verdict(step: Step) -> str:
    """equal, differs, or not recorded."""
    if step.difference is None:
        return "not recorded"
    return "differs" if step.difference else "equal"


def _print_comparison(console: Console, summary: Summary) -> None:
    table = Table("event", "action", "seconds", "observation", "how it differs", title="replay against the record")
    colours = {"equal": "green", "differs": "red", "not recorded": "yellow"}
    for row in comparison(summary, "")["actions"]:
        word = row["verdict"]
        table.add_row(
            str(row["event"]),
            str(row["action"]),
            f"{row['seconds']:.3f}",
            f"[{colours[word]}]{word}[/]",
            escape(str(row["difference"])),
        )
    console.print(table)
    console.print(f"{summary.executed} actions in {summary.seconds:.2f} s")
