"""`atoll nodes`: the nodes of the server of the data directory, for its operator."""

from __future__ import annotations

import shutil
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from atoll.cli.api import ask
from atoll.cli.environment import client_environ
from atoll.cli.words import AsJson, DataDir, errors_printed, print_json, settings_of
from atoll.config import Settings
from atoll.model.node_addresses import parse_nodes

app = typer.Typer(help="The nodes of a running server: list, drain, add, remove.", no_args_is_help=True)

NodeId = Annotated[str, typer.Argument(help="Its id, as `atoll nodes list` shows it.", show_default=False)]
_MIB = 1 << 20
_LEAST_COLUMNS = 120


@app.command("list")
def list_nodes(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show all nodes: how they are, what they hold, and what is used of their machines."""
    with errors_printed():
        found: list[dict[str, Any]] = _ask(settings_of(data_dir), "GET", "")
        print_json(found) if as_json else _print_nodes(found)


@app.command()
def drain(node: NodeId, data_dir: DataDir = None) -> None:
    """What runs there goes on, nothing new begins; also after a restart of either side."""
    with errors_printed():
        _ask(settings_of(data_dir), "POST", node, {"status": "draining"})


@app.command()
def undrain(node: NodeId, data_dir: DataDir = None) -> None:
    """It takes new sandboxes again."""
    with errors_printed():
        _ask(settings_of(data_dir), "POST", node, {"status": "ready"})


@app.command()
def add(
    node: Annotated[str, typer.Argument(metavar="ID=HOST:PORT", show_default=False)], data_dir: DataDir = None
) -> None:
    """Connect to a node from now on, also after a restart of the server."""
    with errors_printed():
        (address,) = parse_nodes([node])
        _ask(settings_of(data_dir), "PUT", address.node_id, {"host": address.host, "port": address.port})


@app.command()
def remove(node: NodeId, data_dir: DataDir = None) -> None:
    """Forget a node that was added, once it has no sandboxes any more."""
    with errors_printed():
        _ask(settings_of(data_dir), "DELETE", node)


@app.command()
def images(node: NodeId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the images that a node has: snapshots, and what templates that teams build stand on."""
    with errors_printed():
        found: list[dict[str, Any]] = _ask(settings_of(data_dir), "GET", node, more="/images")
        if as_json:
            print_json(found)
            return
        table = _table("IMAGE", "MIB", "LAYERS", "MEMORY")
        for one in found:
            has_memory = "yes" if one["hasMemory"] else "-"
            table.add_row(one["imageID"], str(one["sizeBytes"] // _MIB), str(one["layers"]), has_memory)
        _print(table)


def _ask(settings: Settings, method: str, node: str, body: dict[str, Any] | None = None, more: str = "") -> Any:
    path = f"/nodes/{quote(node, safe='')}" if node else "/nodes"
    return ask(client_environ(settings), method, path + more, body)


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _print(table: Table) -> None:
    Console(width=max(_LEAST_COLUMNS, shutil.get_terminal_size().columns)).print(table)


def _print_nodes(found: list[dict[str, Any]]) -> None:
    table = _table("NODE", "STATUS", "SANDBOXES", "CPU", "LOAD", "MEMORY MIB", "DISK MIB", "VERSION")
    for one in found:
        metrics, disk = one["metrics"], one["metrics"]["disks"][0]
        table.add_row(
            one["id"],
            one["status"],
            str(one["sandboxCount"]),
            f"{metrics['cpuPercent']}% of {metrics['cpuCount']}",
            f"{one['load']:.2f}",
            f"{metrics['memoryUsedBytes'] // _MIB} of {metrics['memoryTotalBytes'] // _MIB}",
            f"{disk['usedBytes'] // _MIB} of {disk['totalBytes'] // _MIB}",
            one["version"] or "-",
        )
    _print(table)
