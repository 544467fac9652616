"""The matrix: the core scenario with old and new client versions, each in its own environment, by domain over TLS.

    python tests/matrix/run.py                 all versions; writes the table into docs/compatibility.md
    python tests/matrix/run.py --only js 2.7.0 one version, told step by step
    python tests/matrix/run.py --refresh       asks the registries for the list of published versions

`make matrix` calls it. The environments are kept in a cache directory (see `environments.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from matrix import versions  # noqa: E402
from matrix.environments import prepare  # noqa: E402
from support.python_environment import InstallFailed  # noqa: E402
from support.server import ServerProcess  # noqa: E402

DOCUMENT = TESTS.parent / "docs" / "compatibility.md"
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"
SCENARIO_S = 180
AT_ONCE = 3
NAMES = {"python": "Python `e2b`", "js": "JavaScript `e2b`"}
NO_INTERPRETER = frozenset({("python", "2.38.0"), ("python", "2.39.0")})
"""No release of the code interpreter fits these: 2.6.2 misses an attribute of theirs, 2.7.0 to 2.9.0 pass an argument
that they lack, later ones ask for a newer `e2b`. Their `code` step fails inside the client, before any request."""
STEPS = ("create", "run", "files", "pty", "list", "kill", "code", "async")


@dataclass(frozen=True, slots=True)
class Result:
    """How one version did. No `steps`: it could not be installed or told nothing; `trouble` says why."""

    language: str
    version: str
    interpreter: str = ""
    steps: dict[str, str] = field(default_factory=dict)
    trouble: str = ""

    @property
    def failures(self) -> dict[str, str]:
        failed = {name: outcome for name, outcome in self.steps.items() if outcome != "ok"}
        if (self.language, self.version) in NO_INTERPRETER:
            failed.pop("code", None)
        return failed if self.steps else {"start": self.trouble or "told nothing"}


@contextmanager
def domain_server() -> Iterator[dict[str, str]]:
    """A server of our own in domain mode; gives the environment of its clients."""
    from atoll.cli.domain import domain_environ
    from atoll.cli.running import find
    from atoll.config import Settings

    templates = Settings.from_environ(os.environ).templates_dir
    with tempfile.TemporaryDirectory(prefix="atoll-matrix-") as directory:
        data_dir = Path(directory) / "data"
        options = ["--end-sandboxes", "--domain", "sbx.localhost:0", "--tls", "auto"]
        server = ServerProcess.start(data_dir, templates_dir=templates, options=options)
        try:
            told = find(data_dir)
            if told is None or told.domain is None:
                raise RuntimeError("the server does not tell its domain")
            yield client_environ(domain_environ(told.domain, server.api_key, told.ca_bundle))
        finally:
            server.stop()


def client_environ(wanted: dict[str, str]) -> dict[str, str]:
    """A clean environment: nothing of ours or of E2B's but `wanted`, and no other trust store."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG", "TMPDIR")}
    return {**kept, **wanted}


def run_one(language: str, version: str, environ: dict[str, str]) -> Result:
    """Installs if needed, runs, reads what it told."""
    try:
        environment = prepare(language, version)
    except InstallFailed as error:
        return Result(language, version, trouble=f"not installed: {error}")
    try:
        done = subprocess.run(
            environment.command, env=environ, capture_output=True, text=True, timeout=SCENARIO_S, check=False
        )
    except subprocess.TimeoutExpired:
        return Result(language, version, environment.interpreter, trouble=f"not done after {SCENARIO_S} s")
    line = next((text for text in reversed(done.stdout.splitlines()) if text.startswith('{"steps"')), None)
    if line is None:
        return Result(language, version, environment.interpreter, trouble=(done.stderr or done.stdout)[-400:])
    return Result(language, version, environment.interpreter, json.loads(line)["steps"])


def table(results: list[Result]) -> str:
    """Markdown: one line per version."""
    lines = [
        f"Run by `make matrix`: {len(results)} versions, each in an environment of its own, by domain over TLS; the "
        "core scenario creates, runs, writes and watches files, opens a terminal, lists, kills, runs code.",
    ]
    for language, title in NAMES.items():
        rows = [result for result in results if result.language == language]
        steps = [name for name in STEPS if any(name in result.steps for result in rows)]
        lines += ["", f"| {title} | code interpreter | {' | '.join(steps)} |", "|---" * (len(steps) + 2) + "|"]
        for result in rows:
            told = " | ".join(_cell(result, name) for name in steps)
            lines.append(f"| {result.version} | {result.interpreter} | {told} |")
    return "\n".join(lines)


def _cell(result: Result, step: str) -> str:
    if result.steps.get(step) == "ok":
        return "works"
    return "fails" if step in result.failures or not result.steps else "no code interpreter release fits"


def write_table(text: str) -> None:
    """Between the markers of the document."""
    document = DOCUMENT.read_text()
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    DOCUMENT.write_text(f"{head}{BEGIN}\n{text}\n{END}{tail}")


def refresh() -> None:
    """Asks pip and npm which versions there are."""
    told = subprocess.run(
        [sys.executable, "-m", "pip", "index", "versions", "e2b"], capture_output=True, text=True, check=True
    ).stdout
    listed = re.search(r"Available versions: (.*)", told)
    if listed is None:
        raise SystemExit("pip did not list the versions of e2b")
    ask = ["npm", "view", "--json"]
    js = subprocess.run([*ask, "e2b", "versions"], capture_output=True, text=True, check=True).stdout
    rows = subprocess.run(
        [*ask, "@e2b/code-interpreter@>=2.0.0", "version", "dependencies.e2b"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found = {
        "python": list(reversed(listed[1].split(", "))),
        "js": json.loads(js),
        "js_interpreter": {row["version"]: row["dependencies.e2b"].lstrip("^") for row in json.loads(rows)},
    }
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items())
    versions.PUBLISHED.write_text("{\n" + lines + "\n}\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs=2, metavar=("LANGUAGE", "VERSION"), help="this one; writes nothing")
    parser.add_argument("--refresh", action="store_true", help="renew the list of published versions, run nothing")
    arguments = parser.parse_args()
    if arguments.refresh:
        refresh()
        return 0
    wanted = [(language, version) for language in NAMES for version in versions.chosen(language)]
    if arguments.only:
        wanted = [tuple(arguments.only)]
    with domain_server() as environ, ThreadPoolExecutor(AT_ONCE) as pool:
        results = []
        for result in pool.map(lambda one: run_one(*one, environ), wanted):
            results.append(result)
            print(f"{result.language:7} {result.version:8} {result.failures or 'works'}", flush=True)
    if not arguments.only:
        write_table(table(results))
    failed = [result for result in results if result.failures]
    print(f"{len(results) - len(failed)} of {len(results)} versions work")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
