"""Ordinary E2B tutorial code, unchanged, in a process of its own that knows only environment variables."""

from __future__ import annotations

import os
import subprocess
import sys

from support.tiers import one_tier

pytestmark = one_tier("calls of the SDK that are tested one by one in each tier")

TUTORIAL = r'''
from e2b_code_interpreter import Sandbox

# Create a sandbox
sandbox = Sandbox.create(timeout=120, metadata={"user": "ada"}, envs={"GREETING": "hello"})
info = sandbox.get_info()
print("state:", info.state.value)

# Run code: state is kept between the cells
sandbox.run_code("x = 1")
execution = sandbox.run_code("x += 1; x")
print("x is", execution.text)

# Upload a data set and analyse it
sandbox.files.write("/home/user/data.csv", "name,score\nada,3\ngrace,5\n")
code = """
import pandas as pd
import matplotlib.pyplot as plt
df = pd.read_csv('/home/user/data.csv')
print(df.score.sum())
plt.bar(df.name, df.score)
plt.title('Scores')
plt.show()
"""
execution = sandbox.run_code(code, on_stdout=lambda m: print("stdout:", m.line.strip()))
chart = execution.results[0]
print("png:", chart.png is not None, "chart:", chart.chart.type.value, chart.chart.title)

# Errors are data
execution = sandbox.run_code("1 / 0")
print("error:", execution.error.name)

# Commands and files
result = sandbox.commands.run("echo $GREETING && ls /home/user")
print(result.stdout)
sandbox.files.make_dir("/home/user/out")
sandbox.files.write("/home/user/out/a.txt", "A")
print([entry.name for entry in sandbox.files.list("/home/user/out")])

# A web server in the background
server = sandbox.commands.run("python3 -m http.server 8080", background=True)
host = sandbox.get_host(8080)
print("host ok:", host.startswith("8080-"))
server.kill()

# Reconnect by id, find it in the list, and clean up
same = Sandbox.connect(sandbox.sandbox_id)
print("reconnected:", same.run_code("x").text)
running = Sandbox.list().next_items()
print("listed:", sandbox.sandbox_id in [s.sandbox_id for s in running])
print("killed:", sandbox.kill())
'''

EXPECTED = """state: running
x is 2
stdout: 8
png: True chart: bar Scores
error: ZeroDivisionError
hello
data.csv

['a.txt']
host ok: True
reconnected: 2
listed: True
killed: True
"""


def test_tutorial_code_runs_unchanged(server, interpreter_template) -> None:
    assert len([line for line in TUTORIAL.splitlines() if line.strip() and not line.startswith("#")]) >= 30
    environ = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), **server.environ}
    done = subprocess.run(
        [sys.executable, "-c", TUTORIAL], env=environ, capture_output=True, text=True, timeout=110, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == EXPECTED
