"""The ladder of fixtures: templates → server → sandboxes (in `integration/`); and no suite may skip itself whole.

templates_dir     the default location, shared by all servers of the session, built if needed
tier              the isolation tier: every test that uses `server` runs once in each (`support/tiers.py`)
server            one real `atoll serve` for all tests of a tier, with real isolation
postgres, database_url   a PostgreSQL cluster of the session's; a new database, once SQLite and once PostgreSQL
make_server       servers of a test's own, for tests that stop, kill or restart them
"""

from __future__ import annotations

import gc
import os
import signal
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from support.host import skip_without
from support.postgres import Postgres, cluster
from support.server import STALLS, ServerProcess
from support.tiers import SERVER_ENVIRON, TIERS, tiers_of

# A run in the background of a script ignores these, and every program that a test starts would inherit it.
for _number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.default_int_handler if _number == signal.SIGINT else signal.SIG_DFL)

# A request without a limit of its own waits as long as the SDK's do: httpx's five seconds fail a busy machine.
for _phase in ("connect", "read", "write", "pool"):
    setattr(httpx._config.DEFAULT_TIMEOUT_CONFIG, _phase, 60.0)

SDK_VARIABLES = ("E2B_API_KEY", "E2B_API_URL", "E2B_SANDBOX_URL", "E2B_VOLUME_API_URL", "E2B_DOMAIN", "E2B_DEBUG")


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL cluster for the session; skips where Debian's `postgresql` is not installed."""
    with cluster() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database as a new server has it, once of each kind."""
    from support.databases import migrated_postgres, migrated_sqlite

    if request.param == "sqlite":
        return migrated_sqlite(tmp_path)
    return migrated_postgres(request.getfixturevalue("postgres"))


@pytest.fixture(scope="session")
def templates_dir() -> Path:
    """Where templates are built once for all: ATOLL_TEMPLATES_DIR or the default data directory's."""
    from atoll.config import Settings
    from atoll.images.store import TemplateStore

    directory = Settings.from_environ(os.environ).templates_dir
    TemplateStore(directory).ensure_template("base")
    return directory


@pytest.fixture(scope="session")
def interpreter_template(templates_dir: Path) -> None:
    """The template `code-interpreter-v1`, built if needed."""
    from atoll.images.store import TemplateStore

    TemplateStore(templates_dir).ensure_template("code-interpreter-v1")


@pytest.fixture(scope="session")
def browser_template(interpreter_template: None, templates_dir: Path) -> None:
    """The template `browser`, built if needed: a minute. Skips where Debian's Chromium cannot be had."""
    from atoll.images.store import TemplateStore
    from atoll.model.errors import BackendUnavailable, BuildFailed

    try:
        TemplateStore(templates_dir).ensure_template("browser")
    except (BuildFailed, BackendUnavailable) as error:
        pytest.skip(f"the template `browser` cannot be built here: {error}")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """The tier is a parameter of the whole session, so pytest runs all tests of one before those of the next."""
    if "tier" in metafunc.fixturenames:
        metafunc.parametrize("tier", tiers_of(metafunc), indirect=True, scope="session")


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Bytes are no part of a test's name: workers must collect the same names, and packed bytes may hold the time."""
    return argname if isinstance(val, bytes) else None


@pytest.fixture(scope="session")
def tier(request: pytest.FixtureRequest) -> str:
    """The isolation tier that the test's sandboxes are in; skips where this machine does not have it."""
    skip_without(request.param)
    return str(request.param)


@pytest.fixture(scope="session")
def server(tier: str, templates_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The tier's server; the SDKs' variables in `os.environ` point at it."""
    from support.images import registry_environ  # its imports are not there in every environment that loads this file

    running = ServerProcess.start(
        tmp_path_factory.mktemp(f"server-{tier}") / "data",
        templates_dir=templates_dir,
        options=["--end-sandboxes", "--isolation", tier],
        environ={**SERVER_ENVIRON[tier], **registry_environ()},
    )
    with pytest.MonkeyPatch.context() as patch:
        for name in SDK_VARIABLES:
            patch.delenv(name, raising=False)
        for name, value in running.environ.items():
            patch.setenv(name, value)
        yield running
    assert running.stop() == 0, running.log_tail()


@pytest.fixture
def make_server(templates_dir: Path, tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that end with the test: `make_server(data_dir=None, **ServerProcess.start's arguments)`."""
    skip_without("namespaces")
    with ExitStack() as stack:
        count = 0

        def start(data_dir: Path | None = None, **more: Any) -> ServerProcess:
            nonlocal count
            count += 1
            started = ServerProcess.start(data_dir or tmp_path / f"server-{count}", templates_dir=templates_dir, **more)
            stack.callback(started.stop)
            return started

        yield start


OVER_THE_SDK = tuple(f"tests/unit/test_guest_{name}.py" for name in ("core", "files", "filesystem", "process", "watch"))
"""Unit tests that drive a guest by the SDK, whose connections are left to the collector."""


def _is_tidy(item: pytest.Item) -> bool:
    """Whether it leaves nothing open: no file, socket or loop."""
    return item.nodeid.startswith(("tests/unit/", "tests/style/")) and not item.nodeid.startswith(OVER_THE_SDK)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in filter(_is_tidy, items):
        item.add_marker(pytest.mark.filterwarnings("error::ResourceWarning"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """What a test of another kind left open is let go before a tidy one runs, which is not blamed for it."""
    done = yield
    if nextitem is not None and _is_tidy(nextitem) and not _is_tidy(item):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    return done


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """A failed test that used the server shows the end of the server's log."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    running = getattr(item, "funcargs", {}).get("server")
    if report.failed and isinstance(running, ServerProcess):
        report.sections.append(("end of the server's log", running.log_tail()))


class Workers:
    """A session with several workers (`-n`): who runs what, and what they send to the one that reports."""

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_make_scheduler(self, config: pytest.Config, log: Any) -> Any:
        from xdist.scheduler import LoadScopeScheduling

        class ByServer(LoadScopeScheduling):
            """All tests of a tier's server are one worker's, and so are all others of a file."""

            def _split_scope(self, nodeid: str) -> str:
                file, _, test = nodeid.partition("::")
                first = test.partition("[")[2].split("-")[0].rstrip("]")
                return first if first in TIERS and file.startswith("tests/integration/") else file

        return ByServer(config, log)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        STALLS.extend(getattr(node, "workeroutput", {}).get("stalls", ()))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Workers())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """No server's loop may have stood still, whatever the tests sent; and see `_refuse_empty_suites`."""
    if (sent := getattr(session.config, "workeroutput", None)) is not None:
        sent["stalls"] = STALLS
        return
    if STALLS:
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line("a server's event loop stood still:\n" + "\n".join(STALLS), red=True)
        session.exitstatus = exitstatus or pytest.ExitCode.TESTS_FAILED
        return
    _refuse_empty_suites(session, exitstatus)


def _refuse_empty_suites(session: pytest.Session, exitstatus: int) -> None:
    """In CI a folder whose tests all skipped is a failure: a machine that cannot run them must not look green."""
    if not os.environ.get("CI") or exitstatus != 0:
        return
    reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
    outcomes: dict[str, set[str]] = defaultdict(set)
    for outcome in ("passed", "skipped", "xfailed"):
        for report in reporter.stats.get(outcome, ()):
            parts = Path(report.nodeid.split("::")[0]).parts
            if len(parts) > 2:
                outcomes[parts[1]].add(outcome)
    if empty := sorted(folder for folder, seen in outcomes.items() if seen == {"skipped"}):
        reporter.write_line(f"every test skipped in: {', '.join(empty)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
