"""Tables of docs/compatibility.md: every public method of the published clients, with the test that shows it working,
and what differs between the isolation tiers.

    python tests/compatibility/table.py          prints them
    python tests/compatibility/table.py --write  writes them into the document

Methods are read from the installed packages, tests from their source: a method works when a test calls it other than
to see it raise. What no test calls must be named in NOT_OFFERED with the reason; a method in neither place fails
`test_compatibility.py`. What differs between tiers is in `support/tiers.py`.
"""

from __future__ import annotations

import ast
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from support import tiers  # noqa: E402

INTEGRATION = TESTS / "integration"
JS = INTEGRATION / "js"
DOCUMENT = TESTS.parent / "docs" / "compatibility.md"
METHODS, DIFFERENCES = "methods", "tiers"
"""The parts of the document that are written here, each between two comments."""

IDENTITY = "workload identity tokens are issued by no part of Atoll; a create that asks for them is refused"

NOT_OFFERED = (
    (r"Secret\.iam_?[tT]oken", IDENTITY),
    (r"e2b auth .*", "signs in at E2B's cloud in a browser; with a key in `E2B_API_KEY` no command needs it"),
)
"""Pattern of a method → why it is not offered. What a test calls works, whatever is written here."""

OWNERS = {
    "Sandbox": r"(?:\b\w*(?:[sS]andbox|Interpreter|interpreter|sbx|box)\w*|\bsandbox\(\))\.{name}\(",
    "files": r"\bfiles\.{name}\(",
    "commands": r"\bcommands\.{name}\(",
    "pty": r"\bpty\.{name}\(",
    "git": r"\bgit\.{name}\(",
    "interpreter": r"\b(?!commands\b|files\b)\w+\.{name}\(",
    # A builder is made from the class or kept in a variable; JavaScript's has the methods of both in one group.
    "Template": r"\b(?:Async)?Template(?:\([^()]*\))?\.{name}\(|\b(?:builder|container|ready)\.{name}\(",
    "TemplateBuilder": r"\b(?:builder|container|ready)\.{name}\(",
    "Volume": r"\b(?:(?:Async)?Volume|volume)\.{name}\(",
    "Secret": r"\b(?:Async)?Secret\.{name}\(",
}
ANY_HANDLE = r"\b(?!commands\b|files\b|pty\b|git\b|\w*[sS]andbox\b)\w+(?:\([^()]*\))?\.{name}\("
"""Handles have many names in tests, so:"""
MADE_BY = {
    "CommandHandle": "commands.",
    "CommandInputHandle": "stream_input(",
    "WatchHandle": "watch_dir(",
    "SandboxPaginator": ".list(",
}
"""…a test counts for a handle only if it makes one."""
ABOUT = {"Sandbox": "lifecycle", "CommandHandle": "commands", "CommandInputHandle": "commands", "WatchHandle": "watch"}
"""Group → the word in the name of the file whose tests are about it, where it is not the group's own."""


@dataclass(frozen=True, slots=True)
class Row:
    """`test` or `reason` is set; neither means that the table has a hole."""

    client: str
    method: str
    test: str = ""
    reason: str = ""

    @property
    def told(self) -> str:
        """Empty for a hole."""
        return f"works (`{self.test}`)" if self.test else f"not offered: {self.reason}" if self.reason else ""


def rows() -> list[Row]:
    """Every row: Python synchronous and asynchronous, JavaScript, the command line."""
    return [*python_rows(), *js_rows(), *cli_rows()]


# Python


def python_rows() -> Iterator[Row]:
    for client, is_async in (("Python", False), ("Python, async", True)):
        for group, names in python_members(is_async).items():
            for name in names:
                yield _row(client, f"{group}.{name}", _python_test(group, name, is_async))


def python_members(is_async: bool) -> dict[str, list[str]]:
    """Group → the public methods that the installed packages have."""
    import e2b
    import e2b_code_interpreter

    prefix = "Async" if is_async else ""
    sandbox = getattr(e2b, f"{prefix}Sandbox")
    interpreter = getattr(e2b_code_interpreter, f"{prefix}Sandbox")
    hints = {
        name: getattr(sandbox, name).fget.__annotations__["return"] for name in ("files", "commands", "pty", "git")
    }
    groups: dict[str, list[str]] = {"Sandbox": _methods(sandbox)}
    for name, hint in hints.items():
        groups[name] = _methods(_resolve(sandbox, hint))
    for kind in ("CommandHandle", "CommandInputHandle", "WatchHandle", "SandboxPaginator"):
        if (found := getattr(e2b, prefix + kind, None)) is not None:
            groups[kind] = _methods(found)
    groups["interpreter"] = [name for name in _methods(interpreter) if not hasattr(sandbox, name)]
    for kind in ("Template", "Volume", "Secret"):
        groups[kind] = _methods(getattr(e2b, prefix + kind))
    if not is_async:  # one builder serves both
        groups["TemplateBuilder"] = _methods(_resolve(e2b.Template, e2b.Template.from_image.__annotations__["return"]))
    return groups


def _resolve(owner: type, hint: object) -> type:
    if isinstance(hint, type):
        return hint
    found = getattr(sys.modules[owner.__module__], str(hint).strip("'\""))
    assert isinstance(found, type)
    return found


def _methods(holder: type) -> list[str]:
    return [
        name
        for name in dir(holder)
        if not name.startswith("_")
        and not isinstance(inspect.getattr_static(holder, name), property)
        and callable(getattr(holder, name))
        and not inspect.isclass(getattr(holder, name))
    ]


@cache
def python_tests() -> dict[str, tuple[str, bool, bool]]:
    """`file::test` → its source, whether it uses the synchronous and the asynchronous SDK."""
    found: dict[str, tuple[str, bool, bool]] = {}
    # The tests of the SDK come first: they are the ones that a reader wants to see.
    for path in sorted(INTEGRATION.glob("test_*.py"), key=lambda path: (not path.stem.startswith("test_sdk"), path)):
        text = path.read_text()
        both = "AsyncSandbox.create(" in text and 'params=["sync", "async"]' in text
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                is_async = isinstance(node, ast.AsyncFunctionDef)
                source = _without_raises(text, node)
                found[f"{path.stem}::{node.name}"] = source, both or not is_async, both or is_async
    return found


def _without_raises(text: str, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """A function's source but for what must raise in it: a call that fails shows no method working."""
    lines = text.splitlines()
    for inner in ast.walk(node):
        if isinstance(inner, ast.With) and any("raises(" in ast.unparse(item.context_expr) for item in inner.items):
            for number in range(inner.lineno - 1, inner.end_lineno or inner.lineno):
                lines[number] = ""
    return "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _python_test(group: str, name: str, is_async: bool) -> str:
    """The first test that calls the method."""
    pattern = re.compile(OWNERS.get(group, ANY_HANDLE).replace("{name}", re.escape(name)))
    home = f"test_sdk_{ABOUT.get(group, group.lower())}"
    found = sorted(python_tests().items(), key=lambda item: not item[0].startswith(home))
    for test, (source, for_sync, for_async) in found:
        if group not in OWNERS and (MADE_BY[group] not in source or not test.startswith("test_sdk_")):
            continue
        if (for_async if is_async else for_sync) and pattern.search(source):
            return test
    return ""


# JavaScript


def js_rows() -> Iterator[Row]:
    for group, names in js_members().items():
        for name in names:
            yield _row("JavaScript", f"{group}.{name}", _js_test(group, name))


@cache
def js_members() -> dict[str, list[str]]:
    """As the installed npm packages have them."""
    script = Path(__file__).with_name("members.mjs")
    done = subprocess.run(["node", str(script), str(JS)], capture_output=True, text=True, check=True, timeout=60)
    members: dict[str, list[str]] = json.loads(done.stdout)
    return members


@cache
def js_tests() -> dict[str, str]:
    """`file: test` → its source."""
    found: dict[str, str] = {}
    for path in sorted(JS.glob("*.test.mjs")):
        for part in re.split(r"^(?=test\()", path.read_text(), flags=re.MULTILINE)[1:]:
            if match := re.match(r"test\('([^']+)'", part):
                found[f"{path.name.split('.')[0]}: {match[1]}"] = part
    return found


def _js_test(group: str, name: str) -> str:
    pattern = re.compile(OWNERS.get(group, ANY_HANDLE).replace("{name}", re.escape(name)))
    return next((test for test, source in js_tests().items() if pattern.search(source)), "")


# The command line


def cli_rows() -> Iterator[Row]:
    for group, name in cli_commands():
        pattern = re.compile(rf'"{group}",\s*"{name}"')
        tests = (test for test, (source, *_) in python_tests().items() if pattern.search(source))
        yield _row("CLI", f"e2b {group} {name}", next(tests, ""))


@cache
def cli_commands() -> list[tuple[str, str]]:
    """What `e2b GROUP --help` lists."""
    found: list[tuple[str, str]] = []
    for group in _listed_commands():
        found += [(group, name) for name in _listed_commands(group)]
    return found


def _listed_commands(*group: str) -> list[str]:
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "COLUMNS": "200"}
    command = [str(JS / "node_modules" / ".bin" / "e2b"), *group, "--help"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60, env=environ).stdout
    listed = told.partition("Commands:\n")[2]
    return [name for name in re.findall(r"^  ([a-z]+)(?:\||\s)", listed, re.MULTILINE) if name != "help"]


# The document


def _row(client: str, method: str, test: str) -> Row:
    reasons = (reason for pattern, reason in NOT_OFFERED if re.fullmatch(pattern, method))
    return Row(client, method, test) if test else Row(client, method, reason=next(reasons, ""))


def versions() -> str:
    """What the rows were read from."""
    from importlib.metadata import version

    pinned = json.loads((JS / "package.json").read_text())["dependencies"]
    python = [f"{name} {version(name)}" for name in ("e2b", "e2b-code-interpreter")]
    return ", ".join([*(f"{one} (Python)" for one in python), *(f"{name} {at} (npm)" for name, at in pinned.items())])


def table(found: list[Row]) -> str:
    """Markdown: a table per client."""
    works = sum(bool(row.test) for row in found)
    lines = [f"Read from {versions()}: {len(found)} methods, {works} work, {len(found) - works} are not offered."]
    client = ""
    for row in found:
        if row.client != client:
            client = row.client
            lines += ["", f"### {client}", "", "| method | |", "|---|---|"]
        lines.append(f"| `{row.method}` | {row.told} |")
    return "\n".join(lines)


def written() -> list[Row]:
    """The rows that stand in the document now."""
    found: list[Row] = []
    client = ""
    for line in part(METHODS).splitlines():
        if line.startswith("### "):
            client = line.removeprefix("### ")
        elif match := re.fullmatch(r"\| `([^`]+)` \| (?:works \(`([^`]+)`\)|not offered: (.+)) \|", line):
            found.append(Row(client, match[1], match[2] or "", match[3] or ""))
    return found


def part(name: str) -> str:
    """What stands in the document between the comments of a part."""
    begin, end = _marks(name)
    return DOCUMENT.read_text().partition(f"{begin}\n")[2].partition(f"\n{end}")[0]


def write(name: str, text: str) -> None:
    begin, end = _marks(name)
    head, _, rest = DOCUMENT.read_text().partition(begin)
    _, _, tail = rest.partition(end)
    DOCUMENT.write_text(f"{head}{begin}\n{text}\n{end}{tail}")


def _marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def main() -> int:
    found = rows()
    for name, text in ((METHODS, table(found)), (DIFFERENCES, tiers.table())):
        if "--write" in sys.argv[1:]:
            write(name, text)
        else:
            print(text)
    holes = [f"{row.client}: {row.method}" for row in found if not row.told]
    for hole in holes:
        print("no test and no reason:", hole, file=sys.stderr)
    return 1 if holes else 0


if __name__ == "__main__":
    sys.exit(main())
