"""Building a template layer for real: what its script may do, what it sees of this machine, what a failure leaves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.images.recipes import RECIPES, Recipe
from atoll.images.store import TemplateStore
from atoll.model.errors import BuildFailed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="builds as root are tested as root")


@pytest.fixture
def templates(templates_dir: Path) -> Iterator[Path]:
    """A templates directory of the test's own; `base` is hard-linked from the shared one."""
    own = Path(f"{templates_dir}.test-{os.getpid()}")
    own.mkdir()
    subprocess.run(["cp", "-al", str(templates_dir / "base"), str(own / "base")], check=True)
    yield own
    assert str(own) not in Path("/proc/self/mountinfo").read_text()
    shutil.rmtree(own)


def recipe(tmp_path: Path, script: str) -> Recipe:
    path = tmp_path / "script.sh"
    path.write_text(f"set -eu\n{script}\n")
    return Recipe("layered", "a test", str(path), parent="base")


def store(templates: Path, layered: Recipe) -> TemplateStore:
    return TemplateStore(templates, {"base": RECIPES["base"], "layered": layered})


def test_a_layer_holds_what_its_script_wrote_and_nothing_of_this_machine(templates: Path, tmp_path: Path) -> None:
    script = """
    test "$(id -u)" = 0 && test "$$" = 1 && test "$(hostname)" = sandbox
    echo made >/opt/made; mkdir /opt/dir; touch /opt/dir/file; chown user:user /opt/dir
    touch /run/left /tmp/left
    rm /usr/bin/tree
    cat /etc/resolv.conf >/dev/null
    """
    layer, *below = store(templates, recipe(tmp_path, script)).ensure_template("layered").layers
    assert (layer / "opt/made").read_text() == "made\n"
    assert ((layer / "opt/made").stat().st_uid, (layer / "opt/dir").stat().st_uid) == (0, 1000)
    assert not any((layer / name).exists() for name in ("run", "tmp", "etc/resolv.conf", "etc/hosts", "proc", "dev"))
    removed = (layer / "usr/bin/tree").lstat()
    assert (removed.st_rdev, oct(removed.st_mode)[:4]) == (0, "0o20"), "a removed file is a whiteout"
    assert (below[0] / "usr/bin/tree").exists()
    marks = {mark for path in layer.rglob("*") if not path.is_symlink() for mark in os.listxattr(path)}
    assert not [mark for mark in marks if "overlay" in mark]


@pytest.mark.parametrize(
    "forbidden",
    ["mount -t tmpfs none /mnt", "mknod /opt/disk b 8 0", "ip link add x type dummy", "chroot / true", "date -s @0"],
)
def test_a_script_cannot_change_the_machine(templates: Path, tmp_path: Path, forbidden: str) -> None:
    layered = recipe(tmp_path, f"if {forbidden} 2>/opt/why; then exit 9; fi; cat /opt/why; exit 7")
    with pytest.raises(BuildFailed, match="exit code 7"):
        store(templates, layered).ensure_template("layered")


def test_a_failed_build_shows_why_and_leaves_nothing(templates: Path, tmp_path: Path) -> None:
    layered = recipe(tmp_path, "echo about to fail; echo no such mirror >&2; exit 3")
    with pytest.raises(BuildFailed, match="no such mirror") as caught:
        store(templates, layered).ensure_template("layered")
    log = Path(caught.value.hint.rpartition(" ")[2])
    assert "about to fail" in log.read_text()
    assert list((templates / ".building").iterdir()) == []
    assert [template.template_id for template in store(templates, layered).list_templates()] == ["base"]


def test_a_build_that_is_killed_leaves_no_process_and_the_next_one_succeeds(templates: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from atoll.images.store import TemplateStore
from atoll.images.recipes import RECIPES, Recipe
layered = Recipe("layered", "a test", {str(tmp_path / "script.sh")!r}, parent="base")
TemplateStore(Path({str(templates)!r}), {{"base": RECIPES["base"], "layered": layered}}).ensure_template("layered")
"""
    recipe(tmp_path, "touch /opt/started; exec sleep 86401")
    builder = subprocess.Popen([sys.executable, "-c", code])
    try:
        for _ in range(200):
            if list(templates.glob(".building/layered-*/layer/opt/started")):
                break
            time.sleep(0.05)
        else:
            pytest.fail("the build did not start")
    finally:
        builder.terminate()
        builder.wait(30)
    assert list(templates.glob(".building/layered-*")), "killed outright: its rest is still there"
    template = store(templates, recipe(tmp_path, "echo done >/opt/done")).ensure_template("layered")
    assert (template.layers[0] / "opt/done").exists()
    assert list((templates / ".building").iterdir()) == []
    sleepers = subprocess.run(["pgrep", "-f", "sleep 86401"], capture_output=True, text=True, check=False).stdout
    assert sleepers == ""


def test_the_base_template_tells_nothing_of_the_machine_that_built_it(templates_dir: Path) -> None:
    tree = TemplateStore(templates_dir).find_template("base").layers[0]
    assert (tree / "etc/machine-id").read_text() == ""
    assert (tree / "etc/hostname").read_text() == "sandbox\n"
    assert os.uname().nodename not in (tree / "etc/hosts").read_text()
    assert [path.name for path in (tree / "etc/apt/sources.list.d").iterdir()] == ["debian.sources"]
    assert not any(os.listdir(tree / name) for name in ("dev", "run", "tmp", "var/lib/apt/lists/partial"))
    assert not list((tree / "etc/apt/apt.conf.d").glob("*mmdebstrap*"))
    passwd = (tree / "etc/passwd").read_text()
    assert "\nuser:x:1000:1000:" in passwd
    assert (tree / "home/user").stat().st_uid == 1000
    assert (tree / "workspace").stat().st_uid == 1000
    assert (tree / "etc/sudoers.d/user").stat().st_mode & 0o777 == 0o440


def test_a_login_shell_starts_no_other_program(templates_dir: Path) -> None:
    tree = TemplateStore(templates_dir).find_template("base").layers[0]
    # With no program in reach, a fork in a login file would complain.
    command = [
        "chroot",
        str(tree),
        "/bin/bash",
        "-c",
        'PATH=/none; HOME=/home/user; . /etc/profile; . "$HOME/.profile"',
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "HOME": "/home/user"}
    )
    assert done.stderr == ""
    for name in ("etc/profile", "home/user/.profile"):
        assert "$(" not in (tree / name).read_text()
