"""The command line's own pieces: masking, the record of a running server, addresses, quick help."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from atoll.cli import running
from atoll.cli.environment import client_environ, environ_for, export_lines
from atoll.cli.logs import mask_secrets
from atoll.config import Settings
from atoll.model.errors import Conflict, InvalidRequest
from atoll.server.plan import check_database, url_of


@pytest.mark.parametrize(
    ("event", "hidden"),
    [
        ({"api_key": "e2b_00ff"}, "e2b_00ff"),
        ({"envd_access_token": "t0k3n"}, "t0k3n"),
        ({"event": "key e2b_0123456789abcdef was used"}, "0123456789abcdef"),
        ({"url": "/files?path=x&signature=v1_abc&y=1"}, "v1_abc"),
        ({"database": "postgresql+asyncpg://user:hunter2@db/atoll"}, "hunter2"),
        ({"Authorization": "Basic dXNlcjo="}, "dXNlcjo="),
    ],
)
def test_secrets_are_masked_by_name_and_by_shape(event: dict[str, str], hidden: str) -> None:
    assert hidden not in str(mask_secrets(None, "info", dict(event)))


def test_what_is_no_secret_stays() -> None:
    event = {"event": "request", "path": "/v2/sandboxes", "status": 201, "sandbox_id": "abcd"}
    assert mask_secrets(None, "info", dict(event)) == event


def test_only_one_holder_of_a_data_directory(tmp_path: Path) -> None:
    with running.exclusive(tmp_path / "d"), pytest.raises(Conflict, match="already"), running.exclusive(tmp_path / "d"):
        pytest.fail("two servers held one data directory")
    with running.exclusive(tmp_path / "d"):
        pass


def test_a_server_is_found_while_it_runs_and_not_after(tmp_path: Path) -> None:
    assert running.find(tmp_path) is None
    with running.exclusive(tmp_path):
        assert running.find(tmp_path) is None
        with running.announced(tmp_path, "http://h:1", "generated") as told:
            assert running.find(tmp_path) == told
        assert running.find(tmp_path) is None


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "{", '{"pid": 1}', '{"pid":1,"url":"","started_at":"","keys":"","x":1}']
)
def test_a_damaged_record_is_no_server(tmp_path: Path, text: str) -> None:
    with running.exclusive(tmp_path):
        (tmp_path / running.RECORD).write_text(text)
        assert running.find(tmp_path) is None


def test_what_a_killed_server_left_is_no_server(tmp_path: Path) -> None:
    (tmp_path / running.LOCK).touch()
    (tmp_path / running.RECORD).write_text('{"pid": 1, "url": "http://h:1", "started_at": "", "keys": "generated"}')
    with pytest.raises(Conflict, match="no server runs on"):
        client_environ(Settings.from_environ({"ATOLL_DATA_DIR": str(tmp_path)}))


def test_export_lines_survive_the_shell() -> None:
    lines = export_lines(environ_for("http://127.0.0.1:1", "k'ey $HOME"))
    shell = subprocess.run(
        ["sh", "-c", f'{lines}\nprintf %s "$E2B_API_KEY"'], capture_output=True, text=True, check=True
    )
    assert shell.stdout == "k'ey $HOME"


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"),
        ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"),
        ("::1", "http://[::1]:80"),
        ("box.example", "http://box.example:80"),
    ],
)
def test_a_server_tells_an_address_that_can_be_reached(host: str, url: str) -> None:
    assert url_of(host, 80) == url


def test_help_needs_none_of_the_server() -> None:
    program = (
        "import sys; sys.argv = ['atoll', '--help']\ntry:\n  from atoll.cli.main import main; main()\nfinally:\n  "
    )
    program += "print(*[m for m in ('sqlalchemy', 'fastapi', 'e2b', 'uvloop') if m in sys.modules], file=sys.stderr)"
    told = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "100"},
    )
    assert told.returncode == 0
    assert "replay" in told.stdout
    assert told.stderr.strip() == ""


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        (None, True), ("postgresql://u@h/d", True), ("sqlite:////data/control/own.db", True),
        ("sqlite:////data/atoll.db", False), ("sqlite:////elsewhere/x.db", False), ("sqlite://", False),
    ],
)  # fmt: skip
def test_a_database_file_lies_where_the_control_plane_may_write(url: str | None, fits: bool) -> None:
    settings = Settings(data_dir=Path("/data"), templates_dir=Path("/t"), database_url=url)
    if fits:
        check_database(settings)
    else:
        with pytest.raises(InvalidRequest, match="below /data/control"):
            check_database(settings)


def test_the_dashboard_asks_for_figures_that_there_are() -> None:
    from pathlib import Path

    from prometheus_client.metrics_core import Metric

    from atoll.control.telemetry.figures import Figures

    def names(metric: Metric) -> set[str]:
        parts = {"histogram": ("_count", "_bucket", "_sum"), "counter": ("_total",)}.get(metric.type, ("",))
        return {metric.name + part for part in parts}

    docs = Path(__file__).parents[2] / "docs"
    there = set().union(*(names(one) for one in Figures(dict, list).registry.collect()))
    panels = json.loads((docs / "grafana-dashboard.json").read_text())["panels"]
    asked = set(re.findall(r"atoll_\w+", json.dumps([target["expr"] for one in panels for target in one["targets"]])))
    documented = set(re.findall(r"`(atoll_\w+)`", (docs / "observability.md").read_text()))
    assert asked <= there
    assert documented == {name.removesuffix("_count") for name in there if not name.endswith(("_bucket", "_sum"))}
