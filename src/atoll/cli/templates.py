"""`atoll template`: building with a progress bar, listing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from atoll.images.recipes.recipe import Progress as Step
from atoll.images.store import TemplateStore


def build(templates_dir: Path, name: str) -> None:
    """Builds `name` and its parents if they are missing or out of date. Raises BuildFailed, TemplateNotFound."""
    store = TemplateStore(templates_dir)
    console = Console(stderr=True)
    if store.is_current(name):
        console.print(f"template [bold]{name}[/bold] is ready")
        return
    columns = (TextColumn("{task.fields[template]:<20}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
    with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.description}"), console=console) as bar:
        tasks: dict[str, TaskID] = {}
        last = ""

        def show(step: Step) -> None:
            nonlocal last
            if step.template not in tasks:
                tasks[step.template] = bar.add_task(step.message, total=1.0, template=step.template)
            bar.update(tasks[step.template], completed=step.fraction, description=step.message)
            if not console.is_terminal and step.message != last:
                last = step.message
                console.print(f"{step.template}: {step.fraction:4.0%} {step.message}")

        store.ensure_template(name, show)
    if removed := store.remove_unused_builds():
        console.print(f"removed {removed} superseded build{'s' if removed > 1 else ''} that no sandbox stands on")


def rows(templates_dir: Path) -> list[dict[str, Any]]:
    """Every usable template as plain data."""
    return [
        {
            "templateID": template.template_id,
            "names": list(template.names),
            "buildID": template.build_id,
            "cpuCount": template.limits.cpu_count,
            "memoryMB": template.limits.memory_mib,
            "codeInterpreter": template.interpreter,
            "createdAt": template.created_at.isoformat(timespec="seconds"),
        }
        for template in TemplateStore(templates_dir).list_templates()
    ]


def print_table(found: list[dict[str, Any]]) -> None:
    """For people."""
    if not found:
        Console(stderr=True).print("no templates yet: build one with [bold]atoll template build base[/bold]")
        return
    table = Table("template", "also known as", "cpu", "memory", "code interpreter", "built")
    for row in found:
        table.add_row(
            row["templateID"],
            ", ".join(row["names"]),
            str(row["cpuCount"]),
            f"{row['memoryMB']} MiB",
            "yes" if row["codeInterpreter"] else "",
            row["createdAt"],
        )
    Console().print(table)
