"""Browsing on a real server with the template `browser`: a real Chromium on pages that the sandbox itself serves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atoll.runtime import BrowseInteractiveAction, BrowseURLAction, CmdRunAction, E2BRuntime, FileWriteAction
from atoll.runtime.browser.browser import png_of
from atoll.runtime.config import RuntimeConfig
from atoll.runtime.events.observations import BrowserOutputObservation, ErrorObservation, FileDownloadObservation
from support.tiers import one_tier

pytestmark = [
    pytest.mark.timeout(600),  # the first one may build the template
    one_tier("Chromium and its template take minutes; what it asks of a kernel is not what a tier promises"),
]

SHOP = """<!doctype html><title>Shop</title><h1>Hello <b>you</b></h1><p>Text with <a href="/two.html">a link</a>.</p>
<label>Name <input id=n></label><input type=checkbox id=c aria-label=agree>
<select id=s aria-label=colour><option value=r>Red<option value=g>Green</select><input type=file id=f>
<button onclick="document.title=['did',n.value,c.checked,s.value,(f.files[0]||{}).name].join(' ')">Go</button>
<iframe srcdoc="<button onclick='this.textContent=1'>inner</button>"></iframe>
<a href="/data.bin" download="x.txt">save</a> <a href="two.html" target="_blank">pop</a>
<p draggable=true aria-label=piece ondragstart="event.dataTransfer.setData('text/plain','q')">piece</p>
<p aria-label=basket ondragover="event.preventDefault()"
  ondrop="event.preventDefault();document.title='dropped '+event.dataTransfer.getData('text/plain')">basket</p>
<button onclick="alert('stop')">Ask</button><button style="display:none" id=h>hidden</button>"""
PDF = (
    b"%PDF-1.1\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\n2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj\n"
    b"3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 300 200]/Contents 4 0 R>>endobj\n"
    b"4 0 obj<</Length 24>>stream\n1 0 0 rg 0 0 300 200 re f\nendstream endobj\n"
    b"trailer<</Root 1 0 R>>\n%%EOF\n"
)


@pytest.fixture(scope="module")
def runtime(server: Any, browser_template: None) -> Iterator[E2BRuntime]:
    with E2BRuntime(template="browser", sid="browsing") as made:
        for name, text in {"index.html": SHOP, "two.html": "<title>two</title><p>second", "data.bin": "hey"}.items():
            made.run_action(FileWriteAction(f"/workspace/{name}", text))
        made.run_action(CmdRunAction("python3 -m http.server 8000 >/dev/null 2>&1 &"))
        made.run_action(CmdRunAction("until curl -s localhost:8000 >/dev/null; do sleep 0.1; done", blocking=True))
        yield made


def do(runtime: E2BRuntime, actions: str, **more: Any) -> BrowserOutputObservation:
    found = runtime.run_action(BrowseInteractiveAction(actions, **more))
    assert isinstance(found, BrowserOutputObservation), found
    return found


def bid(observation: BrowserOutputObservation, node: str) -> str:
    found = re.search(rf"\[(\w+)\] {node}", observation.content)
    assert found, f"{node} is not in\n{observation.content}"
    return found[1]


@pytest.fixture
def shop(runtime: E2BRuntime) -> BrowserOutputObservation:
    return do(runtime, "goto('http://localhost:8000/')")


def test_a_url_is_answered_with_the_text_of_its_page_and_no_shell_reads_it(runtime: E2BRuntime) -> None:
    found = runtime.run_action(BrowseURLAction("http://localhost:8000/?q='; touch /workspace/pwned; '"))
    assert isinstance(found, BrowserOutputObservation)
    assert found.content.startswith("[Current URL: http://localhost:8000/?q=")
    assert "============== BEGIN webpage content ==============\n# Hello **you**\n\nText with [a link](/two.html)." in (
        found.content
    )
    assert (found.trigger_by_action, found.error, found.active_page_index) == ("browse", False, 0)
    assert png_of(found.screenshot).startswith(b"\x89PNG")
    assert found.axtree_object == {}
    assert "pwned" not in runtime.list_files("/workspace")


def test_a_url_that_does_not_answer_is_an_error_of_the_page(runtime: E2BRuntime) -> None:
    found = runtime.run_action(BrowseURLAction("http://localhost:8001/"))
    assert isinstance(found, BrowserOutputObservation)
    assert found.error
    assert "The following error occurred when trying to visit the URL:" in found.content
    assert "net::ERR_CONNECTION_REFUSED at http://localhost:8001/" in found.last_browser_action_error


def test_the_tree_names_elements_and_frames_as_browsergym_does(shop: BrowserOutputObservation) -> None:
    text = shop.content
    assert text.startswith(
        f"[Current URL: http://localhost:8000/]\n[Focused element bid: {shop.focused_element_bid}]\n"
    )
    assert "[Action executed successfully.]\nAccessibility tree of the COMPLETE webpage:\nNote: [bid]" in text
    assert "RootWebArea 'Shop', focused" in text
    assert re.search(r"\n\t+\[\d+\] heading 'Hello you'\n", text)
    assert re.search(r"\[a\] Iframe ''\n", text)
    assert re.search(r"\[a\d+\] button 'inner', clickable\n", text)
    assert "StaticText 'inner'" not in text
    assert "InlineTextBox" not in text


def test_a_form_is_filled_by_several_actions_at_once(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    found = do(
        runtime,
        f"""
fill('{bid(shop, "textbox 'Name'")}', "Ann")
check('{bid(shop, "checkbox 'agree'")}')
select_option('{bid(shop, "combobox 'colour'")}', options="Green")
upload_file('{bid(shop, "button 'Choose File")}', "data.bin")
click('{bid(shop, "button 'Go'")}')
""",
    )
    assert found.last_browser_action_error == ""
    assert "RootWebArea 'did Ann true g data.bin'" in found.content


def test_keys_and_the_mouse(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    name = bid(shop, "textbox 'Name'")
    found = do(runtime, f"fill('{name}', 'ab')\npress('{name}', 'Control+a')\nkeyboard_type('Xy+')\nhover('{name}')")
    assert "value='Xy+'" in found.content
    assert found.focused_element_bid == name
    found = do(runtime, f"press('{name}', 'Backspace')")
    assert "value='Xy'" in found.content


def test_a_piece_is_dragged_into_a_basket(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    found = do(runtime, f"drag_and_drop('{bid(shop, '.* .piece')}', '{bid(shop, '.* .basket')}')")
    assert "RootWebArea 'dropped q'" in found.content, found.content


def test_elements_in_frames_are_clicked(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    found = do(runtime, f"click('{bid(shop, 'button .inner')}')")
    assert re.search(r"\[a\d+\] button '1'", found.content)


def test_a_dialog_does_not_stop_the_browser(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    assert not do(runtime, f"click('{bid(shop, 'button .Ask')}')").error


def test_tabs_and_history(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    found = do(runtime, f"click('{bid(shop, 'link .pop')}')")
    assert found.url == "http://localhost:8000/two.html"
    assert (len(found.open_pages_urls), found.active_page_index) == (2, 1)
    found = do(runtime, "tab_close()\ngoto('http://localhost:8000/two.html')\ngo_back()")
    assert found.open_pages_urls == ["http://localhost:8000/"]
    assert found.active_page_index == 0
    assert do(runtime, "go_forward()").url == "http://localhost:8000/two.html"
    assert "IndexError" in do(runtime, "tab_focus(7)").last_browser_action_error
    assert do(runtime, "new_tab()").url == "about:blank"
    assert do(runtime, "tab_close()").open_pages_urls == ["http://localhost:8000/two.html"]


def test_what_an_element_does_not_allow_is_said(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    assert do(runtime, "click('99999')").last_browser_action_error == (
        'ValueError: Could not find element with bid "99999"'
    )
    heading = bid(shop, "heading 'Hello you'")
    assert "Element is not an <input>" in do(runtime, f"fill('{heading}', 'x')").last_browser_action_error
    found = do(runtime, "page.evaluate('1')")
    assert found.error
    assert "only calls of browser actions" in found.content
    assert "heading 'Hello you'" in found.content


def test_a_download_becomes_a_file_of_the_workspace(runtime: E2BRuntime, shop: BrowserOutputObservation) -> None:
    found = runtime.run_action(BrowseInteractiveAction(f"click('{bid(shop, 'link .save')}')"))
    assert isinstance(found, FileDownloadObservation)
    assert re.fullmatch(r"/workspace/file_\d+\.txt", found.file_path)
    assert found.content.endswith(f"The downloaded file is saved at location: {found.file_path}")
    assert runtime.run_action(CmdRunAction(f"cat {found.file_path}")).content == "hey"


def test_pdf_and_images_are_looked_at(runtime: E2BRuntime, tmp_path: Path) -> None:
    blank = shown = do(runtime, "goto('about:blank')").screenshot
    for name in ("a.pdf", "a.png"):
        # The image is the picture of the document before it.
        (tmp_path / name).write_bytes(PDF if name == "a.pdf" else png_of(shown))
        runtime.copy_to(str(tmp_path / name), "/workspace")
        found = runtime.run_action(BrowseURLAction(f"/workspace/{name}"))
        assert isinstance(found, BrowserOutputObservation), found
        assert not found.error
        assert found.url == f"file:///workspace/{name}"
        assert found.screenshot != blank
        shown = found.screenshot


def test_the_tree_comes_along_when_asked_for_and_the_screenshot_lies_in_the_workspace(runtime: E2BRuntime) -> None:
    found = do(runtime, "goto('http://localhost:8000/')", return_axtree=True)
    assert found.axtree_object["nodes"]
    assert found.extra_element_properties
    marked = [bid for bid, facts in found.extra_element_properties.items() if facts["set_of_marks"]]
    assert marked
    assert found.set_of_marks != found.screenshot
    assert found.screenshot_path is not None
    assert runtime.run_action(CmdRunAction(f"head -c 4 {found.screenshot_path} | tail -c 3")).content == "PNG"


def test_a_runtime_that_attaches_finds_the_tabs(runtime: E2BRuntime) -> None:
    do(runtime, "goto('http://localhost:8000/two.html')")
    with E2BRuntime(template="browser", sid="browsing", attach_to_existing=True) as other:
        assert do(other, "noop(1)").url == "http://localhost:8000/two.html"


def test_a_killed_browser_is_told_and_the_next_action_has_a_new_one(runtime: E2BRuntime) -> None:
    do(runtime, "noop(1)")
    runtime.run_action(CmdRunAction("pkill -KILL chromium; sleep 0.5", blocking=True))
    found = [runtime.run_action(BrowseInteractiveAction("goto('http://localhost:8000/')")) for _ in range(3)]
    assert isinstance(found[-1], BrowserOutputObservation)
    assert (found[-1].error, found[-1].url) == (False, "http://localhost:8000/"), found


def test_without_a_browser_or_with_browsing_disabled_the_refusal_says_so(server: Any) -> None:
    refusal = "Browser functionality is not supported or disabled."
    with E2BRuntime() as plain:
        found = plain.run_action(BrowseURLAction("http://localhost/"))
        assert isinstance(found, ErrorObservation)
        assert found.content.startswith(refusal)
        assert "browser" in found.content
    with E2BRuntime(RuntimeConfig(enable_browser=False)) as disabled:
        assert disabled.run_action(BrowseURLAction("http://localhost/")).content == refusal
