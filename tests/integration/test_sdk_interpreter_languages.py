"""The six languages of the published package, each in one context: results, errors, variables, directory, interrupt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from e2b import TimeoutException
from e2b_code_interpreter import Context, Execution, Sandbox

Run = Callable[..., Execution]


@dataclass(frozen=True)
class Language:
    """What one does in it to see the same things."""

    name: str
    prints: str
    """Prints `out` and a line end."""
    complains: str
    """Writes `err` to stderr."""
    value: tuple[str, str] | None
    """A cell, and the text of its result."""
    keeps: str
    """Sets a variable."""
    kept: str
    """Prints the variable."""
    raises: tuple[str, str, str]
    """A cell, the error's name, a part of its value."""
    broken: str
    """What cannot be parsed."""
    variable: str
    """Prints the environment variable CELL, or `none`."""
    directory: str
    """Prints the working directory."""
    loops: str
    """Never ends by itself."""


LANGUAGES = (
    Language(
        "python", "print('out')", "import sys\nprint('err', file=sys.stderr)", ("'a' + 'b'", "ab"), "v = 5", "print(v)",
        ("raise ValueError('bad')", "ValueError", "bad"), "def", "import os\nprint(os.environ.get('CELL', 'none'))",
        "import os\nprint(os.getcwd())", "while True: pass",
    ),
    Language(
        "javascript", "console.log('out')", "console.error('err')", ("[1, 2].map(n => n * 2)", "[ 2, 4 ]"),
        "const v = 5", "console.log(v)", ("throw new RangeError('bad')", "RangeError", "bad"), "const = ;",
        "console.log(process.env.CELL ?? 'none')", "console.log(process.cwd())", "for (;;);",
    ),
    Language(
        "typescript", "const t: string = 'out'; console.log(t)", "console.error('err')",
        ("const n: number = 20; n * 2", "40"), "let v: number = 5", "console.log(v)",
        ("class Mine extends Error { name = 'Mine' }\nthrow new Mine('bad')", "Mine", "bad"), "const = ;",
        "console.log(process.env.CELL ?? 'none')", "console.log(process.cwd())", "for (;;) await new Promise(() => 1)",
    ),
    Language(
        "bash", "echo out", "echo err >&2", None, "v=5", "echo $v", ("(exit 7)", "ExitCode", "7"), "if",
        "echo ${CELL-none}", "pwd", "while true; do :; done",
    ),
    Language(
        "r", "cat('out\\n')", "message('err')", ("x <- 6\nx * 7", "[1] 42"), "v <- 5", "cat(v, '\\n', sep='')",
        ("stop('bad')", "ERROR", "bad"), "x <- (", "cat(Sys.getenv('CELL', 'none'), '\\n', sep='')",
        "cat(getwd(), '\\n', sep='')", "while (TRUE) {}",
    ),
    Language(
        "java", 'System.out.println("out");', 'System.err.println("err");', ("int x = 6;\nx * 7", "42"), "int v = 5;",
        "System.out.println(v);", ('throw new IllegalStateException("bad");', "IllegalStateException", "bad"),
        'int y = "a";', 'System.out.println(System.getenv().getOrDefault("CELL", "none"));',
        'System.out.println(new java.io.File("").getAbsolutePath());', "while (true) {}",
    ),
)  # fmt: skip


in_each_language = pytest.mark.parametrize(
    "language", LANGUAGES, ids=[language.name for language in LANGUAGES], indirect=True, scope="module"
)


@pytest.fixture(scope="module")
def language(request: pytest.FixtureRequest) -> Language:
    return request.param


@pytest.fixture(scope="module")
def context(shared_interpreter: Sandbox, language: Language) -> Iterator[Context]:
    """One context of the language for all that is tried in it."""
    made = shared_interpreter.create_code_context(language=language.name, cwd="/tmp", request_timeout=120)
    yield made
    shared_interpreter.remove_code_context(made)


@pytest.fixture
def cell(shared_interpreter: Sandbox, context: Context) -> Run:
    return lambda code, **options: shared_interpreter.run_code(code, context=context, **options)


def printed(execution: Execution) -> str:
    assert execution.error is None, execution.error
    return "".join(execution.logs.stdout)


@in_each_language
def test_output_values_and_variables(cell: Run, language: Language) -> None:
    assert printed(cell(language.prints)) == "out\n"
    assert "".join(cell(language.complains).logs.stderr).strip() == "err"
    if language.value is not None:
        code, text = language.value
        assert cell(code).text == text
    assert cell(language.keeps).error is None
    assert printed(cell(language.kept)) == "5\n"
    assert printed(cell(language.directory)) == "/tmp\n"


@in_each_language
def test_errors_are_told_and_the_context_goes_on(cell: Run, language: Language) -> None:
    code, name, part = language.raises
    raised = cell(code)
    assert raised.error is not None
    assert raised.error.name == name
    assert part in raised.error.value
    assert "\x1b" not in raised.error.value + raised.error.traceback
    assert cell(language.broken).error is not None
    assert printed(cell(language.prints)) == "out\n"


@in_each_language
def test_variables_of_a_call_are_gone_after_it(cell: Run, language: Language) -> None:
    assert printed(cell(language.variable)) == "none\n"
    assert printed(cell(language.variable, envs={"CELL": "a 'b' \"c\" $d \\n"})) == "a 'b' \"c\" $d \\n\n"
    assert printed(cell(language.variable)) == "none\n"


@in_each_language
def test_a_cell_that_nobody_waits_for_ends(cell: Run, language: Language) -> None:
    with pytest.raises(TimeoutException):
        cell(language.loops, timeout=3)
    assert printed(cell(language.prints, timeout=90)) == "out\n"


def test_python_and_javascript_contexts_are_there_from_the_start_and_others_come_with_their_first_cell(
    interpreter: Sandbox,
) -> None:
    assert [(c.language, c.cwd) for c in interpreter.list_code_contexts()] == [
        ("python", "/home/user"),
        ("javascript", "/home/user"),
    ]
    assert printed(interpreter.run_code("pwd; id -un", language="bash")) == "/home/user\nuser\n"
    assert [c.language for c in interpreter.list_code_contexts()] == ["python", "javascript", "bash"]


def test_what_r_draws_and_shows_is_a_result(shared_interpreter: Sandbox) -> None:
    context = shared_interpreter.create_code_context(language="r", request_timeout=120)
    drawn = shared_interpreter.run_code("plot(1:3)", context=context)
    assert drawn.error is None, drawn.error
    assert any(result.png or result.svg for result in drawn.results)
    table = shared_interpreter.run_code("data.frame(a = 1:2)", context=context)
    assert "<table" in table.results[0].html
    shared_interpreter.remove_code_context(context)


def test_what_a_javascript_cell_shows_is_a_result(shared_interpreter: Sandbox) -> None:
    show = (
        "await display({'text/html': '<b>h</b>'}, {raw: true}); "
        "$$.svg('<svg/>'); $$.json({a: 1}); $$.png('iVBOR'); $$.html('<i>i</i>'); $$.mime({'text/latex': '$x$'})"
    )
    shown = shared_interpreter.run_code(show, language="js")
    assert shown.error is None, shown.error
    found = {name: result[name] for result in shown.results for name in ("svg", "json", "png", "latex") if result[name]}
    assert found == {"svg": "<svg/>", "json": {"a": 1}, "png": "iVBOR", "latex": "$x$"}
    assert [result.html for result in shown.results if result.html] == ["<b>h</b>", "<i>i</i>"]


def test_bash_remembers_where_it_is_and_its_functions(shared_interpreter: Sandbox) -> None:
    def bash(code: str, **options: object) -> str:
        return printed(shared_interpreter.run_code(code, language="bash", **options))

    assert bash("cd /tmp; greet() { echo hello $1; }; alias up='tr a-z A-Z'") == ""
    assert bash("pwd; greet you | up") == "/tmp\nHELLO YOU\n"
    assert bash('cat; read line; echo "got ${line-}"') == "got \n", "a cell has no input"
    assert len(bash("seq 300000")) == len("".join(f"{n}\n" for n in range(1, 300_001)))
    assert bash("printf 'žluť 🦄\\n'; head -c 100000 /dev/zero | tr '\\0' 'x' | wc -c") == "žluť 🦄\n100000\n"
    assert bash(f"echo {'y' * 200_000} | wc -c") == "200001\n", "a cell may be longer than a pipe"
    ended = shared_interpreter.run_code("echo before; exit 3", language="bash")
    assert (printed_so_far(ended), ended.error.name) == ("before\n", "KernelDied")
    assert bash("sleep 300 & echo $!").strip().isdigit(), "what runs in the background does not hold the cell"


def printed_so_far(execution: Execution) -> str:
    return "".join(execution.logs.stdout)


def test_a_context_in_a_directory_of_roots_is_roots(shared_interpreter: Sandbox) -> None:
    context = shared_interpreter.create_code_context(cwd="/root")
    assert context.cwd == "/root"
    where = shared_interpreter.run_code("import os\nprint(os.getcwd(), os.getuid())", context=context)
    assert printed(where) == "/root 0\n"
    shared_interpreter.remove_code_context(context)
