"""The agent's own task list: kept for as long as the runtime lives, shown in OpenHands' form."""

from __future__ import annotations

from atoll.runtime.events.actions import TaskTrackingAction
from atoll.runtime.events.observations import TaskTrackingObservation

_ICONS = {"todo": "⏳", "in_progress": "🔄", "done": "✅"}


class TaskList:
    """`path` is only shown to the agent, as the name of the list."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._text = ""

    def track(self, action: TaskTrackingAction) -> TaskTrackingObservation:
        """`plan` replaces the list, `view` shows it."""
        if action.command == "plan":
            rows = [
                f"{number}. {_ICONS.get(str(task.get('status', 'todo')), '⏳')} {task.get('title', '')}\n"
                f"{task.get('notes', '')}\n"
                for number, task in enumerate(action.task_list, 1)
            ]
            self._text = "# Task List\n\n" + "".join(rows)
            count = len(action.task_list)
            text = f"Task list has been updated with {count} items. Stored in session directory: {self._path}"
            return TaskTrackingObservation(text, command=action.command, task_list=action.task_list)
        if action.command == "view":
            text = self._text or 'No task list found. Use the "plan" command to create one.'
            return TaskTrackingObservation(text, command=action.command)
        return TaskTrackingObservation(f"Unknown command: {action.command}", command=action.command)
