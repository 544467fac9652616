"""What every sandbox needs and an image may lack, added in a layer of its own. Standard library only: see `unpack`."""

from __future__ import annotations

import re
from pathlib import Path

from atoll.control.templates.image.inside.tree import Tree

_NOBODY = 65534
_TOOLS = """
sh cat ls cp mv rm ln mkdir rmdir chmod chown touch mktemp dirname basename env id echo printf sleep true false test
grep sed head tail sort wc cut tr find xargs tar gzip ps pgrep kill date stat readlink realpath which df du uname
"""
_PATHS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_SS = """#!/bin/sh
# The image has no ss: this one knows `ss -Htuln sport = :PORT`, which the SDK's wait_for_port asks.
for word in "$@"; do case $word in :[0-9]*) port=$word ;; esac; done
exec /bin/busybox netstat -tuln | /bin/busybox grep -E "^(tcp|udp).*${port:-:[0-9]+} "
"""


def fit(tree: Tree, user: str) -> str:
    """Adds what the image lacks; returns the user that its programs run as. `user`: of its configuration, or "".

    Accounts, the directories that a system has, bash (what the SDKs run), the tools of the builder's steps,
    certificates. Login files start no program: every command of a sandbox passes through them.
    """
    for path in ("bin", "etc", "dev", "proc", "sys", "run", "var", "usr/bin"):
        tree.make_directory(path)
    for path in ("tmp", "var/tmp"):
        tree.make_directory(path, 0o1777)
    _add_tools(tree)
    default = _add_accounts(tree, user)
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    bundles = ("etc/ssl/certs/ca-certificates.crt", "etc/pki/tls/certs/ca-bundle.crt", "etc/ssl/cert.pem")
    if bundle.is_file() and not any(tree.exists(path) for path in bundles):
        tree.write("etc/ssl/certs/ca-certificates.crt", bundle)
        tree.write("etc/ssl/cert.pem", bundle)
    _quicken_profile(tree)
    return default


def _add_tools(tree: Tree) -> None:
    def has(name: str) -> bool:
        return any(tree.exists(f"{folder}/{name}") for folder in _PATHS)

    busybox, bash = Path("/bin/busybox"), Path("/bin/bash-static")
    missing = [name for name in _TOOLS.split() if not has(name)]
    if (missing or not has("ss")) and busybox.is_file() and not tree.exists("bin/busybox"):
        tree.write("bin/busybox", busybox, 0o755)
    if tree.exists("bin/busybox"):
        for name in missing:
            tree.own(tree.place(tree.resolve(f"bin/{name}"))).symlink_to("/bin/busybox")
        if not has("ss"):
            tree.write("usr/bin/ss", _SS, 0o755)
    if not tree.exists("bin/bash"):
        if has("bash"):
            found = next(folder for folder in _PATHS if tree.exists(f"{folder}/bash"))
            tree.own(tree.place(tree.resolve("bin/bash"))).symlink_to(f"/{found}/bash")
        elif bash.is_file():
            tree.write("bin/bash", bash, 0o755)


def _add_accounts(tree: Tree, wanted: str) -> str:
    passwd, group = tree.read("etc/passwd"), tree.read("etc/group")
    rows = [line.split(":") for line in passwd.splitlines() if line.count(":") == 6]
    groups = [line.split(":") for line in group.splitlines() if line.count(":") >= 3]
    new, new_groups = [], []

    def add(name: str, number: int, home: str) -> None:
        if not any(row[0] == name for row in rows):
            new.append(f"{name}:x:{number}:{number}:{name}:{home}:/bin/bash\n")
        if not any(row[0] == name or row[2] == str(number) for row in groups):
            new_groups.append(f"{name}:x:{number}:\n")
        tree.make_directory("home")
        tree.make_directory(home, 0o700 if number == 0 else 0o755, number)

    add("root", 0, "/root")
    taken = {row[2] for row in (*rows, *groups)}
    if not any(row[0] == "user" for row in rows):
        add("user", next(number for number in range(1000, 60000) if str(number) not in taken), "/home/user")
    name = wanted.split(":")[0]
    if name.isdigit() and name.isascii():
        known = [row[0] for row in rows if row[2] == name]
        if not known and 0 < int(name) < _NOBODY:
            add(f"u{name}", int(name), f"/home/u{name}")
            known = [f"u{name}"]
        name = known[0] if known else ""
    elif not any(row[0] == name for row in rows):
        name = ""
    for path, old, more in (("etc/passwd", passwd, new), ("etc/group", group, new_groups)):
        if more:
            tree.write(path, old + ("\n" if old and not old.endswith("\n") else "") + "".join(more))
    if tree.exists("etc/sudoers.d"):
        tree.write("etc/sudoers.d/user", "user ALL=(ALL:ALL) NOPASSWD: ALL\n", 0o440)
    return name if name not in ("", "root") else "user"


def _quicken_profile(tree: Tree) -> None:
    """A shell that asks `id` for its user's number forks; and a PATH that an image sets is to stay."""
    text = tree.read("etc/profile")
    if "_atoll_path" in text:
        return
    quick = re.sub(r"\$\(id -u\)|`id -u`", "${EUID:-1}", text)
    begin, end = (
        "_atoll_path=${PATH-}\n",
        '\n[ -z "$_atoll_path" ] || PATH=$_atoll_path\nexport PATH\nunset _atoll_path\n',
    )
    tree.write("etc/profile", begin + quick + end)
