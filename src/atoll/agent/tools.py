"""The tools that a model is offered, and their calls as actions. Names and parameters are OpenHands'.

Pure. A call that cannot be understood is a ToolFault with a text for the model, never an exception of the run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from atoll.agent.chat import Message, ToolCall
from atoll.runtime.events.actions import (
    AgentFinishAction,
    AgentThinkAction,
    BrowseInteractiveAction,
    CmdRunAction,
    FileEditAction,
    FileReadAction,
    IPythonRunCellAction,
    TaskTrackingAction,
)
from atoll.runtime.events.base import Action, FileReadSource
from atoll.runtime.files.editor import COMMANDS


class ToolFault(ValueError):
    """A tool call cannot be understood; the text is for the model."""


def _schema(name: str, what: str, required: list[str], **properties: Any) -> Message:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": what, "parameters": parameters}}


def _text(what: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": what, **more}


BASH = _schema(
    "execute_bash",
    "Runs one command in a persistent bash shell in a sandbox. Chain several with && or ;. A command that gives no "
    "output for a while is left running and reported with exit code -1: send an empty command to see more, text with "
    "is_input, or C-c to interrupt it.",
    ["command"],
    command=_text("The command; or input, or a key such as C-c, for the one that runs."),
    is_input={"type": "boolean", "description": "The command is input for the running program."},
    timeout={"type": "number", "description": "Seconds after which it is reported as running."},
)
EDITOR = _schema(
    "str_replace_editor",
    "Looks at and changes files. view shows a file with line numbers, or a directory; create makes a new file; "
    "str_replace replaces one unique text; insert adds lines after insert_line; undo_edit takes the last change back.",
    ["command", "path"],
    command=_text("What to do.", enum=list(COMMANDS)),
    path=_text("Absolute path."),
    file_text=_text("create: the content."),
    old_str=_text("str_replace: the text to be replaced, exactly as it is in the file."),
    new_str=_text("str_replace and insert: the new text."),
    insert_line={"type": "integer", "description": "insert: the line after which to insert; 0 is the beginning."},
    view_range={"type": "array", "items": {"type": "integer"}, "description": "view: first and last line."},
)
IPYTHON = _schema(
    "execute_ipython_cell",
    "Runs Python in a Jupyter kernel in the same sandbox; its state stays from cell to cell.",
    ["code"],
    code=_text("The cell."),
)
BROWSER = _schema(
    "browser",
    "Acts in a browser in the sandbox: goto('https://…'), click('bid'), fill('bid', 'text'), scroll(0, 200), …, "
    "one action a line.",
    ["code"],
    code=_text("The browser actions."),
)
THINK = _schema("think", "Notes a thought. Nothing is done.", ["thought"], thought=_text("The thought."))
TASKS = _schema(
    "task_tracker",
    "Keeps a list of tasks: view shows it, plan replaces it.",
    ["command"],
    command=_text("What to do.", enum=["view", "plan"]),
    task_list={
        "type": "array",
        "items": {
            "type": "object",
            "properties": {
                "id": _text("A short name."),
                "title": _text("What is to be done."),
                "status": _text("How far it is.", enum=["todo", "in_progress", "done"]),
                "notes": _text("Anything worth keeping."),
            },
            "required": ["title", "status"],
        },
    },
)
FINISH = _schema(
    "finish", "Ends the work: the task is done, or cannot be done.", ["message"], message=_text("What was done.")
)


def offered(*, jupyter: bool, browser: bool) -> list[Message]:
    """The tools for a sandbox with or without a kernel and a browser."""
    optional = ([IPYTHON] if jupyter else []) + ([BROWSER] if browser else [])
    return [BASH, EDITOR, *optional, THINK, TASKS, FINISH]


def action_of(call: ToolCall, thought: str = "") -> Action:
    """The action that a call means. Raises ToolFault."""
    make = _MAKERS.get(call.name)
    if make is None:
        raise ToolFault(f"There is no tool {call.name!r}. The tools are: {', '.join(_MAKERS)}.")
    try:
        given = call.parsed()
    except ValueError as error:
        raise ToolFault(f"The arguments of {call.name} are not valid JSON: {error}") from error
    return make(_Arguments(call.name, given), thought)


class _Arguments:
    """Arguments of one call, checked as they are taken."""

    def __init__(self, tool: str, given: Mapping[str, Any]) -> None:
        self._tool = tool
        self._given = given

    def has(self, name: str) -> bool:
        return self._given.get(name) is not None

    def text(self, name: str) -> str:
        if (found := self.optional(name)) is None:
            raise ToolFault(f"{self._tool} needs `{name}`.")
        return found

    def optional(self, name: str) -> str | None:
        self._check(name, str, "a text")
        return str(self._given[name]) if self.has(name) else None

    def flag(self, name: str) -> bool:
        found = self._given.get(name)
        return found if isinstance(found, bool) else str(found).lower() == "true"

    def integer(self, name: str) -> int | None:
        self._check(name, int, "a whole number")
        return int(self._given[name]) if self.has(name) else None

    def seconds(self, name: str) -> float | None:
        found = self._given.get(name)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, (int, float)) or found <= 0:
            raise ToolFault(f"`{name}` of {self._tool} is a number of seconds above 0, not {found!r}.")
        return float(found)

    def items(self, name: str, kind: type) -> list[Any] | None:
        found = self._given.get(name)
        if found is None:
            return None
        if not isinstance(found, list) or not all(isinstance(item, kind) for item in found):
            raise ToolFault(f"`{name}` of {self._tool} is a list of {kind.__name__}, not {found!r}.")
        return found

    def _check(self, name: str, kind: type, what: str) -> None:
        found = self._given.get(name)
        if found is not None and (not isinstance(found, kind) or isinstance(found, bool)):
            raise ToolFault(f"`{name}` of {self._tool} is {what}, not {found!r}.")


def _bash(given: _Arguments, thought: str) -> Action:
    timeout = given.seconds("timeout")
    action = CmdRunAction(given.text("command"), is_input=given.flag("is_input"), thought=thought)
    return action if timeout is None else action.with_hard_timeout(timeout, blocking=True)


def _editor(given: _Arguments, thought: str) -> Action:
    command, path = given.text("command"), given.text("path")
    if command == "view":
        view_range = given.items("view_range", int)
        return FileReadAction(path, thought=thought, impl_source=FileReadSource.OH_ACI, view_range=view_range)
    return FileEditAction(
        path,
        command=command,
        file_text=given.optional("file_text"),
        old_str=given.optional("old_str"),
        new_str=given.optional("new_str"),
        insert_line=given.integer("insert_line"),
        thought=thought,
    )


def _tasks(given: _Arguments, thought: str) -> Action:
    return TaskTrackingAction(given.text("command"), given.items("task_list", dict) or [], thought=thought)


_MAKERS: Mapping[str, Callable[[_Arguments, str], Action]] = {
    "execute_bash": _bash,
    "str_replace_editor": _editor,
    "execute_ipython_cell": lambda given, thought: IPythonRunCellAction(given.text("code"), thought=thought),
    "browser": lambda given, thought: BrowseInteractiveAction(given.text("code"), thought=thought),
    "think": lambda given, thought: AgentThinkAction(given.text("thought")),
    "task_tracker": _tasks,
    "finish": lambda given, thought: AgentFinishAction(given.text("message"), thought=thought),
}
