"""Debian's Chromium by Playwright, for pages of the server."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

needs_chromium = pytest.mark.skipif(
    shutil.which("chromium") is None or find_spec("playwright") is None,
    reason="needs Debian's Chromium (apt install chromium) and Playwright (pip install 'atoll[dev]')",
)

WAIT_MS = 30_000.0


@contextmanager
def browser_page(server: Any, pictures: Path, name: str) -> Iterator[Any]:
    """A browser's page. What its scripts could not do is a failure; a failure leaves a picture of the page."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = chromium.new_page(base_url=server.url, viewport={"width": 1100, "height": 700})
        page.set_default_timeout(WAIT_MS)
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        try:
            yield page
            assert not wrong, wrong
        except BaseException:
            kept = Path(os.environ.get("CONSOLE_PICTURES", pictures))
            kept.mkdir(parents=True, exist_ok=True)
            page.screenshot(path=kept / f"{name}.png", full_page=True)
            raise
        finally:
            chromium.close()
