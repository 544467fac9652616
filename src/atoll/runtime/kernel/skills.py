"""Ships the agent-skills functions into a kernel: as code of one cell, for Python 3.10 and later.

The modules are the same source that runs here. They become importable under our names and, where OpenHands itself is
not installed in the sandbox, under its plugin's name, so that start-up code written for it works unchanged.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

_MODULES = ("files.texts", "files.editor", "kernel.readers", "kernel.skills_code")
_PACKAGE = "atoll.runtime"
_THEIRS = "openhands.runtime.plugins.agent_skills.agentskills"

_LOADER = """
def _atoll_load(sources, package, alias):
    import importlib.util, sys, types
    def parents(name):
        parts = name.split(".")
        for count in range(1, len(parts)):
            parent = ".".join(parts[:count])
            if parent not in sys.modules:
                sys.modules[parent] = types.ModuleType(parent)
                sys.modules[parent].__path__ = []
    for name, source in sources:
        full = package + "." + name
        parents(full)
        module = sys.modules[full] = types.ModuleType(full)
        exec(compile(source, "<" + full + ">", "exec"), module.__dict__)
    if alias.split(".")[0] in sys.modules or importlib.util.find_spec(alias.split(".")[0]) is None:
        parents(alias)
        sys.modules.setdefault(alias, module)
    return module
"""


@cache
def init_code() -> str:
    """Python that defines the functions in the cell's own namespace."""
    runtime = Path(__file__).parents[1]
    sources = [[name, (runtime / f"{name.replace('.', '/')}.py").read_text("utf-8")] for name in _MODULES]
    return (
        f"{_LOADER}\n_atoll_skills = _atoll_load({json.dumps(sources)}, {_PACKAGE!r}, {_THEIRS!r})\n"
        "globals().update({_n: getattr(_atoll_skills, _n) for _n in _atoll_skills.__all__})\n"
        "del _atoll_load, _atoll_skills\n"
    )
