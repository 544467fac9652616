"""The console in Debian's Chromium, as a person uses it. Pictures of failures: in CONSOLE_PICTURES or tmp_path."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from e2b import Sandbox

from support.browser import WAIT_MS, browser_page, needs_chromium
from support.tiers import one_tier

pytestmark = [
    one_tier("pages of the control plane: the sandbox's side is the SDK's own protocol"),
    needs_chromium,
]


def log_in(page: Any, server: Any) -> None:
    page.goto("/")
    page.get_by_label("API key").fill(server.api_key)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("heading", name="Team").wait_for()


def test_the_main_path(server: Any, sandbox: Sandbox, tmp_path: Path) -> None:
    with browser_page(server, tmp_path, "main-path") as page:
        main_path(page, server, sandbox)


def picture(page: Any, name: str) -> None:
    """For the documents: `DOCUMENT_PICTURES=docs/images` takes them anew."""
    if place := os.environ.get("DOCUMENT_PICTURES"):
        page.screenshot(path=Path(place) / f"{name}.png")


def main_path(page: Any, server: Any, sandbox: Sandbox) -> None:
    log_in(page, server)
    page.get_by_role("link", name="Sandboxes").click()
    page.get_by_role("link", name=sandbox.sandbox_id).wait_for()
    picture(page, "console-sandboxes")
    page.get_by_role("link", name=sandbox.sandbox_id).click()
    page.get_by_role("heading", name=f"Sandbox {sandbox.sandbox_id}").wait_for()
    page.locator(".chart canvas").first.wait_for()
    overflow = "all => all.filter(one => one.querySelector('canvas').clientWidth > one.clientWidth).length"
    assert page.locator(".chart").evaluate_all(overflow) == 0, "each is drawn as wide as its box"
    picture(page, "console-sandbox")

    page.get_by_role("link", name="Terminals").click()
    page.get_by_role("button", name="New shell").click()
    screen = page.locator(".xterm-rows")
    screen.get_by_text("$").first.wait_for()
    page.keyboard.type("echo $((6*7)) > answer; cat answer; printf '\\033[38;2;10;200;30mgreen\\033[0m\\n'\n")
    screen.get_by_text(re.compile(r"^42$")).first.wait_for()
    assert sandbox.files.read("answer") == "42\n"
    green = screen.get_by_text("green", exact=True).last
    assert green.evaluate("one => getComputedStyle(one).color") == "rgb(10, 200, 30)", "styles of the terminal apply"
    picture(page, "console-terminal")

    page.reload()
    screen.get_by_text(re.compile(r"^42$")).first.wait_for()
    page.keyboard.type("echo again $((7*7))\n")
    screen.get_by_text("again 49").first.wait_for()

    page.get_by_role("link", name="Files").click()
    page.get_by_label("Files to upload").set_input_files(
        [{"name": "sent.txt", "mimeType": "text/plain", "buffer": b"from the browser"}]
    )
    page.get_by_role("button", name="Upload", exact=True).click()
    page.get_by_role("link", name="sent.txt", exact=True).click()
    page.get_by_label("Contents").fill("edited")
    page.get_by_role("button", name="Save").click()
    page.get_by_text("Saved.").wait_for()
    assert sandbox.files.read("sent.txt") == "edited"

    page.get_by_role("link", name="About").click()
    page.locator(".chart canvas").first.wait_for()
    # A part that is loaded anew just when the sandbox ends gets a 404, which a browser notes as an error.
    one = f"**/sandboxes/{sandbox.sandbox_id}"
    page.route(f"{one}/metrics", lambda route: route.fulfill(json={"at": []}))
    page.route(one, lambda route: route.fulfill(status=204))
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Kill", exact=True).click()
    page.get_by_role("heading", name="Sandboxes").wait_for()
    assert not sandbox.is_running()


def test_by_keyboard_in_the_dark_on_a_phone(server: Any, sandbox: Any, tmp_path: Path) -> None:
    """With a sandbox in the lists, which are wider than a phone."""
    with browser_page(server, tmp_path, "phone") as page:
        by_keyboard(page, server)


def by_keyboard(page: Any, server: Any) -> None:
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 360, "height": 700})
    page.goto("/console/login")
    page.keyboard.type(server.api_key)  # the field has the focus
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Team").wait_for()
    for place in ("/", "/sandboxes", "/sandboxes/new", "/templates", "/snapshots", "/nodes", "/keys", "/connect"):
        page.goto(f"/console{place}")
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{place} is wider than the screen"
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 24, 27)"
        assert page.locator("h1").count() == 1
        unnamed = page.evaluate(
            """[...document.querySelectorAll("input:not([type=hidden]), select, textarea, button, a")]
               .filter(one => !one.labels?.length && !one.textContent.trim()).length"""
        )
        assert unnamed == 0, place
    page.goto("/console/")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_a_cells_chart_is_shown(server: Any, shared_interpreter: Any, tmp_path: Path) -> None:
    with browser_page(server, tmp_path, "chart") as page:
        log_in(page, server)
        page.goto(f"/console/sandboxes/{shared_interpreter.sandbox_id}/code")
        page.get_by_label("Code").fill("print('<b>bold</b>')\nimport matplotlib.pyplot as p\np.plot([1, 3, 2])")
        page.get_by_role("button", name="Run").click()
        page.get_by_text("<b>bold</b>").wait_for()
        chart = page.get_by_alt_text("Chart")
        chart.wait_for(timeout=2 * WAIT_MS)  # a library is loaded first
        assert chart.evaluate("async one => { await one.decode(); return one.naturalWidth; }") > 0
