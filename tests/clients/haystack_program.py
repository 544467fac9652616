# type: ignore
"""e2b-haystack: the tools of its E2BToolset, which share one sandbox, called as Haystack's agent calls them."""

import json

from haystack_integrations.tools.e2b import E2BToolset

CALLS = {
    "run_bash_command": {"command": "echo $GREETING; echo err >&2; exit 3"},
    "write_file": {"path": "/tmp/a/note.txt", "content": "größe"},
    "read_file": {"path": "/tmp/a/note.txt"},
    "list_directory": {"path": "/tmp/a"},
}
toolset = E2BToolset(environment_vars={"GREETING": "hello"})
toolset.warm_up()
found = {"sandbox": toolset.sandbox._sandbox.sandbox_id}
try:
    tools = {tool.name: tool for tool in toolset}
    for name, arguments in CALLS.items():
        found[name] = tools[name].invoke(**arguments)
finally:
    toolset.close()
print("\n" + json.dumps(found))
