# type: ignore
"""camel-ai: its E2BInterpreter, which needs the code interpreter's SDK of before version 2."""

import json
from importlib.metadata import version

from camel.interpreters import E2BInterpreter, InterpreterError

interpreter = E2BInterpreter(require_confirm=False)
found = {"sdk": version("e2b-code-interpreter"), "sandbox": interpreter._sandbox.sandbox_id}
try:
    found["state"] = [interpreter.run("x = 40", "python"), interpreter.run("x + 2", "py3")]
    found["printed"] = interpreter.run("print('out')", "python")
    found["bash"] = interpreter.run("echo $((6 * 7))", "bash")
    found["error"] = interpreter.run("1 / 0", "python")
    found["plot"] = interpreter.run("import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()", "python")[:40]
    found["command"] = interpreter.execute_command("pwd").stdout
    try:
        interpreter.run("x", "cobol")
    except InterpreterError as error:
        found["unknown"] = str(error)
finally:
    del interpreter
print("\n" + json.dumps(found))
