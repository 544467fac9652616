# type: ignore
"""agno: every kind of tool that its E2BTools have, called as an agent calls them."""

import json
import os
import tempfile

from agno.tools.e2b import E2BTools

os.chdir(tempfile.mkdtemp())
tools = E2BTools(timeout=120)
found = {}
try:
    found["code"] = tools.run_python_code("print('out')\n6 * 7")
    found["error"] = tools.run_python_code("1 / 0")
    found["plot"] = tools.run_python_code("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.title('T')\nplt.show()")
    found["png"] = len(tools.download_png_result(None, output_path="plot.png").images)
    found["png_bytes"] = open("plot.png", "rb").read(4).hex()
    found["chart"] = tools.download_chart_data(None, output_path="chart.json").content
    open("up.txt", "w").write("from here")
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
    found["status"] = tools.get_sandbox_status()
    found["running"] = tools.list_running_sandboxes()
    found["sandbox"] = tools.sandbox.sandbox_id
finally:
    found["shutdown"] = tools.shutdown_sandbox()
print("\n" + json.dumps(found))
