"""A Debian 13 tree with Python 3.13 and OpenHands in it: what our classes for OpenHands are tested in.

Built once, on request (ATOLL_TEST_OPENHANDS=1: about ten minutes and 2.5 GB), below the data directory and used from
then on; OpenHands needs Python 3.12, which the machine's own may not be. Owns building it and running a program in it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from atoll.node.recipes import debian, pip_settings

REPOSITORY = Path(__file__).parents[2]
OPENHANDS = "openhands-ai==0.62.0"
SDK = ("openhands-sdk==1.58.2", "openhands-workspace==1.58.2", "openhands-agent-server==1.58.2")
CLIENTS = ("e2b>=2.63", "e2b-code-interpreter>=2.11.5")
BUILD_S = 1800
REVISION = "1"

_TREE = """
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs tmpfs "$1/run"
mkdir -p "$1/run/build"
for file in resolv.conf hosts; do [ ! -e /etc/$file ] || cat /etc/$file >"$1/etc/$file"; done
"""
_INSTALL = (
    _TREE
    + """
cp -rL "$2/." "$1/run/build/"
while IFS='	' read -r name source; do
  mkdir -p "$1/run/build/$name"
  mount --bind "$source" "$1/run/build/$name"
done <"$2/binds"
exec chroot "$1" sh /run/build/install.sh
"""
)
_RUN = _TREE + 'mkdir -p "$1/run/atoll" && mount --bind "$2" "$1/run/atoll" && shift 2 && exec chroot "$@"'
_SCRIPT = f"""
set -eux
python3 -m venv /opt/openhands
/opt/openhands/bin/pip install --no-cache-dir --progress-bar off --prefer-binary --ignore-requires-python {OPENHANDS}
/opt/openhands/bin/pip install --no-cache-dir --progress-bar off {" ".join(f"'{name}'" for name in CLIENTS)}
python3 -m venv /opt/sdk
/opt/sdk/bin/pip install --no-cache-dir --progress-bar off uv
# The SDK asks for a newer certificate bundle than some indexes have, and pip's resolver does not come to an end.
echo certifi >/run/build/override.txt
/opt/sdk/bin/uv pip install --no-cache --python /opt/sdk/bin/python --override /run/build/override.txt \\
  {" ".join(f"'{name}'" for name in (*SDK, *CLIENTS))}
"""


def environment(data_dir: Path, script: str = _SCRIPT, name: str = "openhands") -> Path:
    """The tree, built first if it is missing. Skips where that cannot be."""
    if os.geteuid() != 0:
        pytest.skip("an environment with OpenHands is built as root: mmdebstrap and chroot")
    root = data_dir / "test-environments" / name
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tree, stamp = root / "tree", root / "built"
        if stamp.exists() and stamp.read_text() == REVISION:
            return tree
        if not os.environ.get("ATOLL_TEST_OPENHANDS"):
            pytest.skip("no environment with OpenHands is built; ATOLL_TEST_OPENHANDS=1 builds it in ten minutes")
        stamp.unlink(missing_ok=True)
        shutil.rmtree(tree, ignore_errors=True)
        try:
            _build(root, tree, script)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"an environment with OpenHands cannot be built here: {error} (see {root / 'log'})")
        stamp.write_text(REVISION)
        return tree


def _build(root: Path, tree: Path, script: str) -> None:
    program = debian.ensure_mmdebstrap()
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    mirrors = [uri for source in debian.host_archive().sources for uri in source.uris if not uri.endswith("security")]
    command = debian.mmdebstrap_command(
        program,
        debian.Archive("trixie", ()),
        ("python3", "python3-venv", "ca-certificates", "git", "libnss-myhostname", "procps"),
        root / "unused",
        debian.passed_on_settings(dump),
        target=str(tree),
        rootless=False,
    )
    inputs = root / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(mode=0o700)
    pip = pip_settings.host_settings()
    for name, source in pip.copies.items():
        shutil.copy(source, inputs / name)
    texts = {"pip.conf": pip.config, "install.sh": script}
    texts["binds"] = "".join(f"{name}\t{source}\n" for name, source in pip.binds.items())
    for name, text in texts.items():
        (inputs / name).write_text(text)
    environ = {"PATH": os.environ["PATH"], **pip.environ, "PIP_CONFIG_FILE": "/run/build/pip.conf"}
    if cert := next((name for name in pip.copies if f"cert = {pip_settings.INSIDE / name}" in pip.config), None):
        environ["SSL_CERT_FILE"] = str(pip_settings.INSIDE / cert)
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]
    install = [*private, _INSTALL, "sh", str(tree), str(inputs)]
    with (root / "log").open("w") as log:
        for line, given in (([*command, *mirrors[:1]], None), (install, environ)):
            subprocess.run(line, check=True, stdout=log, stderr=log, env=given, timeout=BUILD_S)


def run_in(tree: Path, venv: str, program: Path, environ: dict[str, str], *, timeout_s: float) -> str:
    """Runs a Python program of this repository in the tree; its standard output. The network is this machine's."""
    inside = f"/run/atoll/{program.relative_to(REPOSITORY)}"
    variables = {
        "PYTHONPATH": "/run/atoll/src",
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": "/root",
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    }
    apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private", "sh", "-euc"]
    arguments = [str(tree), str(REPOSITORY), str(tree), f"/opt/{venv}/bin/python", inside]
    done = subprocess.run(
        [*apart, _RUN, "sh", *arguments],
        env={**variables, **environ},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{program.name} failed:\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout
