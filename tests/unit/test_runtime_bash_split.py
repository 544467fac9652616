"""Where one shell command ends: the scanner against bash's own parser."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.runtime.shell.bash_split import split_commands

ONE = [
    "ls",
    "ls; ls && ls | cat",
    "for f in *; do\n cat $f\ndone",
    "for f\ndo echo\ndone",
    "for ((i=0;i<3;i++))\ndo echo $i\ndone",
    "cat <<EOF\nhello\nEOF",
    "python3 - <<'EOF'\nfor i in range(3):\n    print(i)\nEOF",
    "if true\nthen\n echo 1\nelse\n echo 2\nfi",
    "echo a &&\n\n echo b",
    "echo a |\n cat",
    "f() {\n echo x\n}",
    "f()\n{\n echo x\n}",
    "function g {\n ls\n}",
    "a() ( ls\n)",
    "case $x in\n a) echo 1;;\n b|c)\n echo 2\n ;;\n *) echo ')' ;;\nesac",
    "while :; do\n case x in\n y) ;;\n esac\ndone",
    "echo 'a\nb'",
    'echo "a $(echo \')\' "x\n")\nb"',
    "echo $((1+\n2))",
    "[[ a == b &&\n c == d ]]",
    "arr=(a\nb # c )\n c)",
    "echo a\\\nb",
    "# a comment\necho a",
    "echo a # b\n# c",
    "x=$(cat <<EOF\nab)c\nEOF\n)",
    "{ a\nb\n}",
    "echo $'a\\'b\n'",
    'git commit -m "a\n\nb" && ls',
    "trap 'echo x\n' EXIT",
]
SEVERAL = [
    ("a=1\necho $a", ["a=1", "echo $a"]),
    ("cat <<'EOF' > f\n$(x\nEOF\necho b", ["cat <<'EOF' > f\n$(x\nEOF", "echo b"]),
    ("((i=1))\necho $i", ["((i=1))", "echo $i"]),
    ("sleep 1 &\necho b", ["sleep 1 &", "echo b"]),
    ("(cd x\nls\n)\necho", ["(cd x\nls\n)", "echo"]),
    ("echo a; echo b\n\n\necho c", ["echo a; echo b", "echo c"]),
    ("cat <<-A <<B\n\tx\n\tA\ny\nB\nls", ["cat <<-A <<B\n\tx\n\tA\ny\nB", "ls"]),
    ("echo if\nls", ["echo if", "ls"]),
    ("echo ${a:-'}'}\nls", ["echo ${a:-'}'}", "ls"]),
    ("while read l; do echo; done < <(ls)\nls", ["while read l; do echo; done < <(ls)", "ls"]),
    ("find . -exec rm {} \\;\nls", ["find . -exec rm {} \\;", "ls"]),
    ("case a in esac\nls", ["case a in esac", "ls"]),
]
NOT_UNDERSTOOD = ['echo "unterminated\nls', "if true; then\nls", "echo a)\nls", "echo `ls\nls", "cat <<EOF\nls"]


@pytest.mark.parametrize("text", ONE)
def test_one_command_stays_one(text: str) -> None:
    assert split_commands(text) == [text]


@pytest.mark.parametrize(("text", "commands"), SEVERAL)
def test_lines_at_the_outermost_level_are_commands(text: str, commands: list[str]) -> None:
    assert split_commands(text) == commands


@pytest.mark.parametrize("text", NOT_UNDERSTOOD)
def test_what_is_not_understood_is_left_to_bash(text: str) -> None:
    assert split_commands(text) == [text]


def test_nothing_is_no_command() -> None:
    assert split_commands(" \n ") == []


def _bash_takes(text: str) -> bool:
    found = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    return found.returncode == 0 and "here-document" not in found.stderr and not text.rstrip("\n").endswith("\\")


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash on this machine")
@pytest.mark.parametrize("text", [*ONE, *(text for text, _ in SEVERAL)])
def test_bash_agrees(text: str) -> None:
    found: list[str] = []
    lines: list[str] = []
    for line in text.split("\n"):
        lines.append(line)
        if _bash_takes("\n".join(lines) + "\n"):
            found.append("\n".join(lines))
            lines = []
    commands = [piece for piece in found if any(x.strip() and not x.strip().startswith("#") for x in piece.split("\n"))]
    assert not lines
    assert len(split_commands(text)) == len(commands)


@given(st.text(alphabet="ab \n'\"`$(){}<>|&;#\\=!*[]EOF", max_size=60))
def test_no_text_is_lost_or_raises(text: str) -> None:
    joined = "".join(split_commands(text))
    assert "".join(joined.split()) == "".join(text.split())
