# type: ignore
"""e2b-desktop: the calls of its documentation, in the order of its chapters. Prints what came of them as JSON."""

import json
import time
from io import BytesIO

from e2b_desktop import Sandbox
from PIL import Image

found = {}


def windows(application):
    """Those that it shows, once there are any."""
    for _ in range(120):
        try:
            return desktop.get_application_windows(application)
        except Exception:  # xdotool ends with 1 as long as there is none
            time.sleep(0.5)
    raise TimeoutError(f"{application} shows no window")


desktop = Sandbox.create(resolution=(800, 600), timeout=1200)
try:
    found["size"] = desktop.get_screen_size()
    desktop.move_mouse(100, 200)
    found["mouse"] = [desktop.get_cursor_position()]
    desktop.left_click(x=100, y=200)
    desktop.left_click()
    desktop.middle_click(x=100, y=200)
    desktop.scroll("up", 2)
    desktop.drag((100, 400), (300, 500))
    found["mouse"].append(desktop.get_cursor_position())
    desktop.double_click(400, 500)
    desktop.mouse_press("left")
    desktop.mouse_release("left")
    desktop.right_click(400, 500)
    desktop.press("escape")

    desktop.files.write("/home/user/index.js", "console.log('hello')\n")
    desktop.open("/home/user/index.js")
    (editor, *_) = windows("mousepad")
    desktop.commands.run(f"xdotool windowactivate --sync {editor}")
    found["title"] = desktop.get_window_title(editor)
    found["current"] = desktop.get_window_title(desktop.get_current_window_id())
    # A window is shown before it takes keys, on a busy machine long before.
    for _ in range(5):
        desktop.press(["ctrl", "a"])
        desktop.write("typed = 'Hello, world!'", chunk_size=50, delay_in_ms=25)
        desktop.press("enter")
        desktop.press(["ctrl", "s"])
        desktop.wait(1000)
        found["saved"] = desktop.files.read("/home/user/index.js")
        if found["saved"].startswith("typed ="):
            break
    picture = Image.open(BytesIO(desktop.screenshot()))
    found["picture"] = [picture.format, *picture.size, len(picture.convert("RGB").getcolors(1 << 24)) > 50]

    desktop.stream.start(require_auth=True)
    found["url"] = desktop.stream.get_url(auth_key=desktop.stream.get_auth_key())
    found["page"] = desktop.commands.run("curl -s localhost:6080/vnc.html | grep -c noVNC").stdout
    desktop.stream.stop()
    desktop.stream.start(window_id=editor)
    desktop.stream.stop()

    desktop.launch("google-chrome", "about:blank")
    found["browsers"] = len(windows("chromium"))
finally:
    desktop.kill()
print("\n" + json.dumps(found))
