"""What the zygote loads is in the memory of every sandbox: nothing that it does without."""

from __future__ import annotations

import json
import subprocess
import sys

_LOADED = """
import json, sys
before = set(sys.modules)
from atoll.isolation.namespaces import zygote
from atoll.isolation.namespaces.guest_entry import load_guest
load_guest("atoll.guest.main:main")
loaded = sys.modules.keys() - before
files = {name: getattr(sys.modules[name], "__file__", None) or "" for name in loaded}
print(json.dumps(sorted({name.partition(".")[0] for name, file in files.items() if "site-packages" in file})))
"""


def test_of_other_peoples_packages_the_zygote_loads_httptools_alone() -> None:
    # One import of a logger brought 5 MB of a terminal's colours into each sandbox.
    found = subprocess.run([sys.executable, "-c", _LOADED], capture_output=True, check=True, text=True, timeout=60)
    assert json.loads(found.stdout.splitlines()[-1]) == ["httptools"]
