"""Pages of the documents' site that are made when it is built, and links that are others there (mkdocs.yml)."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
_OF_THE_ROOT = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
_LINK = re.compile(r"\[([^\]\n]+)\]\(((?:\.\./)*)([^)#\s:]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the references, and the documents that lie in the root of the tree."""
    sys.path.insert(0, str(ROOT / "src"))
    pages = {
        "reference/settings.md": _settings(),
        "reference/commands.md": _commands(),
        "reference/rest.md": _rest(),
        "reference/runtime.md": "# atoll.runtime\n\n::: atoll.runtime\n",
        **{name: (ROOT / name).read_text() for name in _OF_THE_ROOT},
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """A link to a file that is no page of the site becomes its text; one into `docs/` loses that part."""
    place = Path(page.file.src_uri).parent

    def target(found: re.Match[str]) -> str:
        text, up, path, anchor = found[1], found[2], found[3], found[4] or ""
        name = path.removeprefix("docs/") if page.file.src_uri in _OF_THE_ROOT else path
        inside = (ROOT / "docs" / place / up / name).resolve()
        for root in (ROOT / "docs", ROOT):
            if inside.is_relative_to(root):
                uri = str(inside.relative_to(root))
                if uri == "README.md":
                    uri = "index.md"
                if files.get_file_from_path(uri) is not None:
                    back = "../" * len([part for part in place.parts if part != "."])
                    return f"[{text}]({back}{uri}{anchor})"
        return text

    return _LINK.sub(target, markdown)


def _settings() -> str:
    """Every variable of the server, as `config.Settings` documents it."""
    from atoll.config import documented

    rows = "\n".join(f"| {', '.join(f'`{name}`' for name in names)} | {text} |" for names, text in documented())
    return (
        "# Settings\n\nEnvironment variables of `atoll serve`. Most have an option of the same name "
        "([command line](commands.md)), which wins. A wrong value is refused at the start, by name.\n\n"
        f"| variable | what |\n|---|---|\n{rows}\n"
    )


def _commands() -> str:
    """The command line, as typer writes it down."""
    command = [sys.executable, "-m", "typer", "atoll.cli.main", "utils", "docs", "--name", "atoll"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return done.stdout.replace("# `atoll`", "# Command line", 1)


def _rest() -> str:
    """The interface of the control plane, from its OpenAPI document."""
    from atoll.control.app import document

    found = document()
    lines = [
        "# REST",
        "",
        "What the control plane answers. Every call needs a key (`X-API-Key`, or `Authorization: Bearer`) but these:",
        "`/health`, `/openapi.json` (this page, for programs) and `/docs` are for everybody; `/console` has its own",
        "log-in; `PUT /templates/uploads/…` is allowed by its signed path, `/volumecontent/…` by its volume's token.",
    ]
    for path, calls in found["paths"].items():
        for method, call in calls.items():
            lines += [
                "",
                f"## `{method.upper()} {path}`",
                "",
                (call.get("description") or call.get("summary") or "").strip(),
            ]
            lines += _parameters(call) + _body(call, found)
    return "\n".join(lines) + "\n"


def _parameters(call: dict[str, Any]) -> list[str]:
    rows = [
        f"| `{one['name']}` | {one['in']} | {_type(one.get('schema', {}))} | {'yes' if one.get('required') else ''} |"
        for one in call.get("parameters", ())
    ]
    return ["", "| parameter | in | type | needed |", "|---|---|---|---|", *rows] if rows else []


def _body(call: dict[str, Any], found: dict[str, Any]) -> list[str]:
    schema = next(iter(call.get("requestBody", {}).get("content", {}).values()), {}).get("schema", {})
    named = schema.get("$ref", "").rsplit("/", 1)[-1]
    schema = found.get("components", {}).get("schemas", {}).get(named, schema)
    rows = [
        f"| `{name}` | {_type(one)} | {'yes' if name in schema.get('required', ()) else ''} |"
        for name, one in schema.get("properties", {}).items()
    ]
    return ["", "| field of the body | type | needed |", "|---|---|---|", *rows] if rows else []


def _type(schema: dict[str, Any]) -> str:
    """A schema in a word or two."""
    if ref := schema.get("$ref"):
        return str(ref).rsplit("/", 1)[-1]
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(dict.fromkeys(_type(one) for one in choices))
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return str(schema.get("type", "anything"))
