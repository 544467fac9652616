"""BrowserGym's actions on tabs. Every function's name and parameters are BrowserGym's; the runtime has checked them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from . import scripts
from .page import ActionError, Page, Point, timed_out

CHOOSER_S = 5.0


class Tabs(Protocol):
    """What the actions need of the browser."""

    messages: list[str]
    timeout_s: float

    @property
    def page(self) -> Page: ...

    async def new_tab(self) -> None: ...

    async def close_tab(self) -> None: ...

    async def focus_tab(self, index: int) -> None: ...


Do = Callable[..., Awaitable[None]]


async def send_msg_to_user(tabs: Tabs, text: str) -> None:
    tabs.messages.append(text)


async def report_infeasible(tabs: Tabs, reason: str) -> None:
    tabs.messages.append(reason)


async def noop(tabs: Tabs, wait_ms: float = 1000) -> None:
    await asyncio.sleep(max(0.0, min(wait_ms / 1000, tabs.timeout_s)))


async def fill(tabs: Tabs, bid: str, value: str, enable_autocomplete_menu: bool = False) -> None:
    page = tabs.page
    element = await page.element(bid)
    await page.ready(element, "Locator.fill", hit=False)
    if (await page.call(element, scripts.STATE))["readonly"]:
        raise timed_out("Locator.fill", "element is not editable")
    answer = await page.call(element, scripts.PREPARE_FILL, value)
    if answer == "done":
        return
    if answer:
        raise ActionError("Error", f"Locator.fill: {answer}")
    last = value[-1:] if enable_autocomplete_menu else ""
    body = value[:-1] if last else value
    if body:
        await page.insert(body)
    else:
        await page.press("Delete")
    if last:
        await page.press(last) if last != "+" else await page.insert(last)


async def clear(tabs: Tabs, bid: str) -> None:
    await fill(tabs, bid, "")


async def _set_checked(tabs: Tabs, bid: str, checked: bool) -> None:
    what = "Locator.check" if checked else "Locator.uncheck"
    page = tabs.page
    element = await page.element(bid)
    state = await page.call(element, scripts.STATE)
    if state["type"] not in ("checkbox", "radio") and state["tag"] == "input":
        raise ActionError("Error", f"{what}: Error: Not a checkbox or radio button")
    if state["checked"] == checked:
        return
    await page.click(await page.ready(element, what))
    if (await page.call(element, scripts.STATE))["checked"] != checked:
        raise ActionError("Error", f"{what}: Clicking the checkbox did not change its state")


async def check(tabs: Tabs, bid: str) -> None:
    await _set_checked(tabs, bid, True)


async def uncheck(tabs: Tabs, bid: str) -> None:
    await _set_checked(tabs, bid, False)


async def select_option(tabs: Tabs, bid: str, options: str | Sequence[str]) -> None:
    page = tabs.page
    element = await page.element(bid)
    await page.ready(element, "Locator.select_option", hit=False)
    answer = await page.call(element, scripts.SELECT, [options] if isinstance(options, str) else list(options))
    if answer.startswith("Error"):
        raise ActionError("Error", f"Locator.select_option: {answer}")
    if answer:
        raise timed_out("Locator.select_option", answer)


async def _click(tabs: Tabs, what: str, bid: str, button: str, modifiers: Sequence[str], times: int) -> None:
    page = tabs.page
    element = await page.element(bid)
    await page.click(await page.ready(element, what), button, modifiers, times)


async def click(tabs: Tabs, bid: str, button: str = "left", modifiers: Sequence[str] = ()) -> None:
    await _click(tabs, "Locator.click", bid, button, modifiers, 1)


async def dblclick(tabs: Tabs, bid: str, button: str = "left", modifiers: Sequence[str] = ()) -> None:
    await _click(tabs, "Locator.dblclick", bid, button, modifiers, 2)


async def hover(tabs: Tabs, bid: str) -> None:
    page = tabs.page
    await page.move(await page.ready(await page.element(bid), "Locator.hover", enabled=False))


async def focus(tabs: Tabs, bid: str) -> None:
    page = tabs.page
    await page.call(await page.element(bid), "function () { this.focus(); }")


async def press(tabs: Tabs, bid: str, key_comb: str) -> None:
    await focus(tabs, bid)
    await tabs.page.press(key_comb)


async def drag_and_drop(tabs: Tabs, from_bid: str, to_bid: str) -> None:
    page = tabs.page
    start = await page.ready(await page.element(from_bid), "Locator.hover", enabled=False)
    await page.move(start)
    await page.down()
    end = await page.ready(await page.element(to_bid), "Locator.hover", enabled=False, hit=False)
    # A drag begins with the first move away from where it was pressed.
    await page.move(Point((start.x + end.x) / 2, (start.y + end.y) / 2))
    await page.move(end)
    await page.up()


async def scroll(tabs: Tabs, delta_x: float, delta_y: float) -> None:
    await tabs.page.wheel(delta_x, delta_y)


async def scroll_at(tabs: Tabs, x: float, y: float, dx: float, dy: float) -> None:
    await tabs.page.move(Point(x, y))
    await tabs.page.wheel(dx, dy)


async def mouse_move(tabs: Tabs, x: float, y: float) -> None:
    await tabs.page.move(Point(x, y))


async def mouse_up(tabs: Tabs, x: float, y: float, button: str = "left") -> None:
    await tabs.page.move(Point(x, y))
    await tabs.page.up(button)


async def mouse_down(tabs: Tabs, x: float, y: float, button: str = "left") -> None:
    await tabs.page.move(Point(x, y))
    await tabs.page.down(button)


async def mouse_click(tabs: Tabs, x: float, y: float, button: str = "left") -> None:
    await tabs.page.click(Point(x, y), button)


async def mouse_dblclick(tabs: Tabs, x: float, y: float, button: str = "left") -> None:
    await tabs.page.click(Point(x, y), button, (), 2)


async def mouse_drag_and_drop(tabs: Tabs, from_x: float, from_y: float, to_x: float, to_y: float) -> None:
    page = tabs.page
    await page.move(Point(from_x, from_y))
    await page.down()
    await page.move(Point((from_x + to_x) / 2, (from_y + to_y) / 2))
    await page.move(Point(to_x, to_y))
    await page.up()


async def keyboard_press(tabs: Tabs, key: str) -> None:
    await tabs.page.press(key)


async def keyboard_down(tabs: Tabs, key: str) -> None:
    await tabs.page.key_down(key)


async def keyboard_up(tabs: Tabs, key: str) -> None:
    await tabs.page.key_up(key)


async def keyboard_type(tabs: Tabs, text: str) -> None:
    for char in text:
        await tabs.page.key_down(char)
        await tabs.page.key_up(char)


async def keyboard_insert_text(tabs: Tabs, text: str) -> None:
    await tabs.page.insert(text)


async def goto(tabs: Tabs, url: str) -> None:
    await tabs.page.goto(url, tabs.timeout_s)


async def go_back(tabs: Tabs) -> None:
    await tabs.page.history(-1, tabs.timeout_s)


async def go_forward(tabs: Tabs) -> None:
    await tabs.page.history(1, tabs.timeout_s)


async def new_tab(tabs: Tabs) -> None:
    await tabs.new_tab()


async def tab_close(tabs: Tabs) -> None:
    await tabs.close_tab()


async def tab_focus(tabs: Tabs, index: int) -> None:
    await tabs.focus_tab(index)


def _existing(file: str | Sequence[str]) -> list[str]:
    files = [os.path.abspath(name) for name in ([file] if isinstance(file, str) else file)]
    for path in files:
        if not os.path.isfile(path):
            raise ActionError("FileNotFoundError", f"[Errno 2] No such file or directory: {path!r}")
    return files


async def upload_file(tabs: Tabs, bid: str, file: str | Sequence[str]) -> None:
    files = _existing(file)
    page = tabs.page
    element = await page.element(bid)

    async def open_chooser() -> None:
        await page.click(await page.ready(element, "Locator.click"))

    await page.choose_files(open_chooser, files, min(CHOOSER_S, tabs.timeout_s))


async def mouse_upload_file(tabs: Tabs, x: float, y: float, file: str | Sequence[str]) -> None:
    files = _existing(file)
    page = tabs.page
    await page.choose_files(lambda: page.click(Point(x, y)), files, min(CHOOSER_S, tabs.timeout_s))


ACTIONS: dict[str, Do] = {
    do.__name__: do
    for do in (
        send_msg_to_user, report_infeasible, noop, fill, clear, check, uncheck, select_option, click, dblclick, hover,
        focus, press, drag_and_drop, scroll, scroll_at, mouse_move, mouse_up, mouse_down, mouse_click, mouse_dblclick,
        mouse_drag_and_drop, keyboard_press, keyboard_down, keyboard_up, keyboard_type, keyboard_insert_text, goto,
        go_back, go_forward, new_tab, tab_close, tab_focus, upload_file, mouse_upload_file,
    )
}  # fmt: skip
"""Name → what does it, with the tabs first."""
