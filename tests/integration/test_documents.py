"""The documents: every block of code is run or says why not, every link leads somewhere, and the site is served."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
import yaml

from support.browser import browser_page, needs_chromium
from support.host import skip_without
from support.server import ServerProcess
from support.tiers import one_tier

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
DRAWN = ("", "text", "ini", "sh", "console")
"""Drawings, and lines for a shell: that their commands exist is looked at below; each has tests of its own."""


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    reason: str
    """Why it is not run; empty: it is."""


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text().splitlines()
    begun: tuple[int, str] | None = None
    for number, line in enumerate(lines, 1):
        if not line.lstrip().startswith("```"):
            continue
        if begun is None:
            begun = number, line.strip().removeprefix("```").strip()
            continue
        first, language = begun
        before = next((one for one in reversed(lines[: first - 1]) if one.strip()), "")
        found = NOT_RUN.search(before)
        text = "\n".join(lines[first : number - 1]) + "\n"
        yield Block(str(page.relative_to(ROOT)), first, language, text, found[1] if found else "")
        begun = None
    assert begun is None, f"{page}: a block has no end"


BLOCKS = [block for page in PAGES for block in _blocks(page)]
IN_PYTHON = sorted({block.page for block in BLOCKS if block.language == "python" and not block.reason})


def test_every_block_is_of_a_kind_that_is_tried() -> None:
    tried = {"python", "js", "yaml", "toml", "json", *DRAWN}
    assert {block.language for block in BLOCKS} <= tried
    assert len(IN_PYTHON) >= 8


@pytest.mark.parametrize("page", [page for page in IN_PYTHON if "tutorial" in page])
@pytest.mark.timeout(180)
def test_the_python_of_a_tutorial_runs(
    page: str, server: ServerProcess, interpreter_template: None, tmp_path: Path
) -> None:
    run_page(page, server, tmp_path)


@pytest.mark.one_tier("the calls of a page have tests of their own in each tier")
@pytest.mark.parametrize("page", [page for page in IN_PYTHON if "tutorial" not in page])
@pytest.mark.timeout(180)
def test_the_python_of_a_page_runs(
    page: str, server: ServerProcess, interpreter_template: None, tmp_path: Path
) -> None:
    run_page(page, server, tmp_path)


def run_page(page: str, server: ServerProcess, tmp_path: Path) -> None:
    """All blocks of a page in their order, in a process that knows the environment variables alone."""
    program = "".join(
        f"# {block.page}:{block.line}\n{block.text}\n"
        for block in BLOCKS
        if (block.page, block.language) == (page, "python") and not block.reason
    )
    (tmp_path / "project").mkdir()
    environ = {**os.environ, **server.environ, "ATOLL_DATA_DIR": str(server.data_dir)}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environ,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\n{program}"


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language == "js"], ids=lambda b: f"{b.page}:{b.line}")
def test_the_javascript_of_a_page_runs(block: Block, server: ServerProcess, interpreter_template: None) -> None:
    from support.npm import install_node_modules

    place = install_node_modules().parent
    done = subprocess.run(
        ["node", "--input-type=module", "-e", block.text],
        env={**os.environ, **server.environ}, cwd=place, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_data_in_the_documents_can_be_read() -> None:
    read = {"yaml": yaml.safe_load, "toml": tomllib.loads, "json": json.loads}
    found = [read[block.language](block.text) for block in BLOCKS if block.language in read]
    assert found
    assert all(found)


def test_commands_in_the_documents_exist() -> None:
    """Each `atoll WORD` and `make WORD` of a shell's lines."""
    from typer.main import get_command

    from atoll.cli.main import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    lines = [line for b in BLOCKS if b.language in ("console", "sh") for line in b.text.splitlines()]
    said = {word for line in lines for word in re.findall(r"(?:^|[\s/(])atoll ([a-z]+)", line.split("#")[0])}
    made = {word for line in lines for word in re.findall(r"^(?:\$ )?make ([a-z]+)", line)}
    assert len(said) > 5
    assert made
    assert said <= known
    assert made <= targets


def test_links_in_the_documents_lead_somewhere() -> None:
    broken = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)\s]+)\)", text):
            path, _, anchor = target.partition("#")
            if "://" in target or target.startswith("mailto:"):
                continue
            file = (page.parent / path).resolve() if path else page
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert broken == []


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def test_every_setting_is_documented() -> None:
    from atoll.config import documented

    source = (ROOT / "src" / "atoll" / "config.py").read_text()
    code = source.partition("def from_environ")[2]
    read = set(re.findall(r'"(ATOLL_[A-Z_]+)"', code)) | {"ATOLL_DATA_DIR"}
    named = {name for names, _ in documented() for name in names}
    assert read - named == set()
    assert all(text for _, text in documented())


@pytest.fixture(scope="module")
def site() -> None:
    subprocess.run([sys.executable, str(ROOT / "scripts" / "docs.py")], check=True, capture_output=True, text=True)


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("site")
def test_the_site_is_built_and_served(server: ServerProcess) -> None:
    """With no key, and with nothing that a page fetches from elsewhere."""
    skip_without("namespaces")
    first = httpx.get(f"{server.url}/docs", follow_redirects=True)
    assert first.status_code == 200
    assert "Sandboxes for AI agents" in first.text
    policy = first.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src 'self' 'sha256-" in policy
    assert "unsafe" not in policy
    again = httpx.get(first.url, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(first.url, headers={"If-None-Match": '"other"'}).text == first.text
    needed = re.findall(r'<(?:script|img)[^>]* src="([^"]+)"|<link rel="stylesheet" href="([^"]+)"', first.text)
    assert needed
    for path in (a or b for a, b in needed):
        assert "://" not in path
        assert httpx.get(f"{server.url}/docs/{path}").status_code == 200, path
    settings = httpx.get(f"{server.url}/docs/reference/settings.html").text
    assert "ATOLL_MAX_MEMORY_MIB" in settings
    assert "POST /sandboxes" in httpx.get(f"{server.url}/docs/reference/rest.html").text
    assert "E2BRuntime" in httpx.get(f"{server.url}/docs/reference/runtime.html").text
    for missing in ("nothing.html", "../pyproject.toml", "%2e%2e/app.py"):
        assert httpx.get(f"{server.url}/docs/{missing}").status_code in (401, 404)


@pytest.mark.timeout(240)
@pytest.mark.usefixtures("site")
@needs_chromium
@one_tier("pages of the control plane")
def test_the_site_works_under_its_policy(server: ServerProcess, tmp_path: Path) -> None:
    """Search and colours are scripts; what the policy keeps a browser from is an error that `browser_page` sees."""
    skip_without("namespaces")
    with browser_page(server, tmp_path, "documents") as page:
        page.goto("/docs/reference/settings.html")
        page.get_by_title("Dark").locator("visible=true").click()
        assert page.locator("body").get_attribute("data-md-color-scheme") == "slate"
        page.keyboard.press("/")
        page.keyboard.type("zygote")
        page.locator(".md-search-result__link").first.click()
        page.wait_for_url(lambda url: "settings" not in url)
