"""A Debian 13 tree with Python 3.13 and several versions of OpenHands: what our classes for OpenHands are tested in.

    first    what openhands-ai 0.56 to 0.62 imports to run a runtime and a controller, a third of what it requires
    later    on top of that: what openhands-ai 1.6 and openhands-sdk 1.58 with its agent server have newer
    /opt/openhands-ai/VERSION   openhands-ai itself, each apart from the other, added when it is first asked for

Built once (two to three minutes, one gigabyte) below the data directory and used from then on; OpenHands needs Python
3.12, which the machine's own may not be. Owns building it and running a program in it. ATOLL_TEST_OPENHANDS says which
versions are tested: the newest by default, `every` (`make matrix`), or `0` for none.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from atoll.images.recipes import debian, pip_settings

REPOSITORY = Path(__file__).parents[2]
PACKAGES = Path(__file__).parent / "openhands_packages"
NEWEST = "1.6.0"
VERSIONS = {"0.56.0": "first", "0.62.0": "first", NEWEST: "later"}
"""The oldest, the one that the contract is written after, and the newest that has the Runtime class."""
BUILD_S = 1200
_DEBIAN = ("python3", "python3-venv", "python3-pip", "ca-certificates", "libnss-myhostname", "procps")

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
_PIP = "/usr/bin/python3 -m pip install --quiet --no-cache-dir --no-compile --no-deps --progress-bar off"
# Versions are fixed and nothing is resolved: that takes an hour for these. A browser's driver and 160 grammars are the
# heaviest parts and never used.
_SCRIPT = f"""
set -eux
python3 -m venv --without-pip /opt/first
python3 -m venv --without-pip /opt/later
lib=$(cd /opt/first && echo lib/python3*/site-packages)
echo "/opt/first/$lib" >"/opt/later/$lib/first.pth"
{_PIP.replace(" install", " --python /opt/first/bin/python install")} -r /run/build/first.txt
rm -rf "/opt/first/$lib/playwright/driver/node"
find "/opt/first/$lib/tree_sitter_language_pack/bindings" -size +1M -delete
{_PIP.replace(" install", " --python /opt/later/bin/python install")} -r /run/build/later.txt
"""
_ADD = f"""
set -eux
rm -rf /opt/openhands-ai/VERSION.new
{_PIP} --target /opt/openhands-ai/VERSION.new --python-version 3.12 --only-binary :all: openhands-ai==VERSION
mv /opt/openhands-ai/VERSION.new /opt/openhands-ai/VERSION
"""


def versions() -> list[str]:
    """Those of openhands-ai that this run tests."""
    return list(VERSIONS) if os.environ.get("ATOLL_TEST_OPENHANDS") == "every" else [NEWEST]


def environment(data_dir: Path) -> Path:
    """The tree with `versions()`, built first if it is missing. Skips where that cannot be, and if none are tested."""
    if os.environ.get("ATOLL_TEST_OPENHANDS") == "0":
        pytest.skip("ATOLL_TEST_OPENHANDS=0: no environment with OpenHands")
    if os.geteuid() != 0:
        pytest.skip("an environment with OpenHands is built as root: mmdebstrap and chroot")
    if platform.machine() != "x86_64":
        pytest.skip(f"openhands-ai 0.56 has no wheel for {platform.machine()}")
    root = data_dir / "test-environments" / "openhands-versions"
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        tree, stamp = root / "tree", root / "built"
        packages = {path.name: path.read_text() for path in sorted(PACKAGES.glob("*.txt"))}
        revision = hashlib.sha256(repr((_SCRIPT, _DEBIAN, packages)).encode()).hexdigest()
        try:
            if not stamp.exists() or stamp.read_text() != revision:
                stamp.unlink(missing_ok=True)
                shutil.rmtree(tree, ignore_errors=True)
                _build(root, tree, packages)
                stamp.write_text(revision)
            for version in versions():
                if not (tree / "opt" / "openhands-ai" / version).exists():
                    _run_script(root, tree, {"install.sh": _ADD.replace("VERSION", version)})
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"an environment with OpenHands cannot be built here: {error} (see {root / 'log'})")
        return tree


def _build(root: Path, tree: Path, packages: Mapping[str, str]) -> None:
    program = debian.ensure_mmdebstrap()
    dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=False).stdout
    mirrors = [uri for source in debian.host_archive().sources for uri in source.uris if not uri.endswith("security")]
    command = debian.mmdebstrap_command(
        program,
        debian.Archive("trixie", ()),
        _DEBIAN,
        root / "unused",
        debian.passed_on_settings(dump),
        target=str(tree),
        rootless=False,
    )
    with (root / "log").open("w") as log:
        subprocess.run([*command, *mirrors[:1]], check=True, stdout=log, stderr=log, timeout=BUILD_S)
    _run_script(root, tree, {**packages, "install.sh": _SCRIPT})


def _run_script(root: Path, tree: Path, texts: Mapping[str, str]) -> None:
    """Runs `install.sh` in the tree, with pip as it is set up on this machine."""
    inputs = root / "inputs"
    shutil.rmtree(inputs, ignore_errors=True)
    inputs.mkdir(mode=0o700)
    pip = pip_settings.host_settings()
    for name, source in pip.copies.items():
        shutil.copy(source, inputs / name)
    binds = "".join(f"{name}\t{source}\n" for name, source in pip.binds.items())
    for name, text in {**texts, "pip.conf": pip.config, "binds": binds}.items():
        (inputs / name).write_text(text)
    environ = {"PATH": os.environ["PATH"], **pip.environ, "PIP_CONFIG_FILE": "/run/build/pip.conf"}
    private = ["unshare", "--mount", "--propagation", "private", "sh", "-euc"]
    with (root / "log").open("a") as log:
        command = [*private, _INSTALL, "sh", str(tree), str(inputs)]
        subprocess.run(command, check=True, stdout=log, stderr=log, env=environ, timeout=BUILD_S)


def run_in(
    tree: Path, venv: str, program: Path, environ: Mapping[str, str], *, version: str | None = None, timeout_s: float
) -> str:
    """Runs a Python program of this repository in the tree; its standard output. The network is this machine's.

    `version` of openhands-ai, None without it.
    """
    inside = f"/run/atoll/{program.relative_to(REPOSITORY)}"
    variables = {
        "PYTHONPATH": "/run/atoll/src" + (f":/opt/openhands-ai/{version}" if version else ""),
        "PYTHONPYCACHEPREFIX": "/var/cache/bytecode",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "OPENHANDS_SUPPRESS_BANNER": "1",
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
