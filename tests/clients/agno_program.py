# type: ignore
"""agno: every kind of tool that its E2BTools have, called as an agent calls them.

Left out are the three that fail inside agno itself with every current SDK: download_chart_data, get_sandbox_status and
list_running_sandboxes ask the SDK's objects for what they do not have.
"""

import json
import os
import tempfile
from pathlib import Path

from agno.tools.e2b import E2BTools

os.chdir(tempfile.mkdtemp())
tools = E2BTools(timeout=120)
found = {}
try:
    found["code"] = tools.run_python_code("print('out')\n6 * 7")
    found["error"] = tools.run_python_code("1 / 0")
    tools.run_python_code("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()")
    found["png"] = len(tools.download_png_result(None, output_path="plot.png").images)
    found["png_begins"] = Path("plot.png").read_bytes()[:4].hex()
    Path("up.txt").write_text("from here")
    found["uploaded"] = tools.upload_file("up.txt")
    found["read"] = tools.read_file_content("up.txt")
    found["written"] = tools.write_file_content("made.txt", "made")
    found["listed"] = tools.list_files("/home/user")
    found["command"] = tools.run_command("echo one; echo two >&2; pwd")
    found["streamed"] = tools.stream_command("echo streamed")
    background = tools.run_background_command("sleep 1000")
    found["killed"] = tools.kill_background_command(background)
    found["url"] = tools.run_server("python3 -m http.server 8000", 8000)
    found["timeout"] = tools.set_sandbox_timeout(60)
    found["sandbox"] = tools.sandbox.sandbox_id
finally:
    found["shutdown"] = tools.shutdown_sandbox()
print("\n" + json.dumps(found))
