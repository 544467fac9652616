"""`run_code` and contexts through the published e2b_code_interpreter SDK, synchronous flavour."""

from __future__ import annotations

import base64
import json

import httpx
import pytest
from e2b import NotFoundException, SandboxException, TimeoutException
from e2b_code_interpreter import Context, ExecutionError, OutputMessage, Result, Sandbox
from e2b_code_interpreter.charts import (
    BarChart,
    BoxAndWhiskerChart,
    ChartType,
    LineChart,
    PieChart,
    ScatterChart,
    SuperChart,
)
from sdk_support import eventually


def test_the_last_expression_is_the_result(run) -> None:
    execution = run("1 + 1")
    assert execution.text == "2"
    assert execution.error is None
    assert [r.is_main_result for r in execution.results] == [True]
    assert execution.execution_count == 1


def test_state_is_kept_between_cells_and_cells_are_counted(run) -> None:
    run("x = 20\ndef twice(n): return 2 * n\nimport math")
    execution = run("twice(x) + math.floor(2.9)")
    assert (execution.text, execution.execution_count) == ("42", 2)


def test_the_default_context_keeps_state_too(interpreter: Sandbox) -> None:
    interpreter.run_code("kept = 'yes'")
    assert interpreter.run_code("kept").text == "yes"


def test_prints_are_logs_not_results(run) -> None:
    execution = run("import sys\nprint('out 1')\nprint('err', file=sys.stderr)\nprint('out 2')")
    assert "".join(execution.logs.stdout) == "out 1\nout 2\n"
    assert "".join(execution.logs.stderr) == "err\n"
    assert execution.results == []
    assert execution.text is None


def test_callbacks_hear_of_everything_as_it_happens(run) -> None:
    out: list[OutputMessage] = []
    err: list[OutputMessage] = []
    results: list[Result] = []
    errors: list[ExecutionError] = []
    run(
        "import sys, time\nfor n in range(3):\n    print(n, flush=True); time.sleep(0.3)\n"
        "print('e', file=sys.stderr)\ndisplay('shown')\nraise ValueError('boom')",
        on_stdout=out.append,
        on_stderr=err.append,
        on_result=results.append,
        on_error=errors.append,
    )
    assert "".join(message.line for message in out) == "0\n1\n2\n"
    assert len(out) > 1, "the output arrived in one piece: it was buffered, not streamed"
    assert [(m.line, m.error) for m in err] == [("e\n", True)]
    assert all(message.timestamp for message in out)
    assert [r.text for r in results] == ["shown"]
    assert [(e.name, e.value) for e in errors] == [("ValueError", "boom")]


def test_an_error_carries_name_value_and_traceback(run) -> None:
    execution = run("def f():\n    return 1 / 0\nprint('before')\nf()")
    assert (execution.error.name, execution.error.value) == ("ZeroDivisionError", "division by zero")
    assert "ZeroDivisionError" in execution.error.traceback
    assert "return 1 / 0" in execution.error.traceback
    assert execution.logs.stdout == ["before\n"]
    assert run("'alive'").text == "alive"


def test_a_syntax_error_is_an_error_not_a_failure_of_the_platform(run) -> None:
    assert run("def").error.name == "SyntaxError"


def test_a_hundred_thousand_lines_arrive_complete(run) -> None:
    execution = run("for n in range(100_000): print(n)")
    assert "".join(execution.logs.stdout) == "".join(f"{n}\n" for n in range(100_000))


def test_unicode_survives_both_ways(run) -> None:
    execution = run("s = 'žluť 🦄 日本'\nprint(s)\ns")
    assert "".join(execution.logs.stdout) == "žluť 🦄 日本\n"
    assert execution.text == "žluť 🦄 日本"


def test_html_markdown_svg_latex_json_and_javascript_are_results(run) -> None:
    execution = run(
        "from IPython.display import HTML, Markdown, SVG, Latex, JSON, Javascript, display\n"
        "display(HTML('<b>h</b>')); display(Markdown('# m')); display(Latex('$x$'))\n"
        "display(SVG('<svg xmlns=\"http://www.w3.org/2000/svg\"/>')); display(JSON({'k': [1]}))\n"
        "display(Javascript('1;'))"
    )
    by_format = {name: result for result in execution.results for name in result.formats()}
    assert by_format["html"].html == "<b>h</b>"
    assert by_format["markdown"].markdown == "# m"
    assert by_format["latex"].latex == "$x$"
    assert "<svg" in by_format["svg"].svg
    assert by_format["json"].json == {"k": [1]}
    assert by_format["javascript"].javascript == "1;"
    assert not any(result.is_main_result for result in execution.results)


def test_a_plot_is_a_png(run) -> None:
    execution = run("import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()")
    (png,) = [result.png for result in execution.results if result.png]
    assert base64.b64decode(png).startswith(b"\x89PNG\r\n")


def _chart(run, code: str):
    execution = run(f"import matplotlib.pyplot as plt\n{code}\nplt.show()")
    assert execution.error is None, execution.error
    (chart,) = [result.chart for result in execution.results if result.chart]
    return chart


def test_a_line_chart_is_told_as_data(run) -> None:
    chart = _chart(
        run, "plt.plot([1, 2, 3], [4, 5, 6], label='l')\nplt.xlabel('x (s)')\nplt.ylabel('y')\nplt.title('t')"
    )
    assert isinstance(chart, LineChart)
    assert (chart.type, chart.title, chart.y_label) == (ChartType.LINE, "t", "y")
    assert chart.x_unit == "s"
    (line,) = chart.elements
    assert line.label == "l"
    assert line.points == [(1, 4), (2, 5), (3, 6)]


def test_a_scatter_chart_is_told_as_data(run) -> None:
    chart = _chart(run, "plt.scatter([1, 2], [3, 4], label='s')")
    assert isinstance(chart, ScatterChart)
    assert chart.elements[0].points == [(1, 3), (2, 4)]


def test_a_bar_chart_is_told_as_data(run) -> None:
    chart = _chart(run, "plt.bar(['a', 'b'], [10, 20])")
    assert isinstance(chart, BarChart)
    assert [(bar.label, float(bar.value)) for bar in chart.elements] == [("a", 10.0), ("b", 20.0)]


def test_a_pie_chart_is_told_as_data(run) -> None:
    chart = _chart(run, "plt.pie([1, 3], labels=['a', 'b'])")
    assert isinstance(chart, PieChart)
    assert [slice_.label for slice_ in chart.elements] == ["a", "b"]
    assert [round(slice_.angle) for slice_ in chart.elements] == [90, 270]


def test_a_box_chart_is_told_as_data(run) -> None:
    chart = _chart(run, "plt.boxplot([[1, 2, 3, 4, 5]], tick_labels=['a'])")
    assert isinstance(chart, BoxAndWhiskerChart)
    (box,) = chart.elements
    assert (box.label, box.min, box.median, box.max) == ("a", 1, 3, 5)


def test_two_charts_in_one_figure_are_a_superchart(run) -> None:
    chart = _chart(run, "f, (a, b) = plt.subplots(1, 2)\na.plot([1, 2], [1, 2])\nb.scatter([1], [2])")
    assert isinstance(chart, SuperChart)
    assert [part.type for part in chart.elements] == [ChartType.LINE, ChartType.SCATTER]


def test_a_data_frame_is_text_html_and_data(run) -> None:
    execution = run("import pandas as pd\npd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})")
    (result,) = execution.results
    assert "a" in result.text
    assert "x" in result.text
    assert "<table" in result.html
    assert result.data == {"a": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize("module", ["numpy", "pandas", "matplotlib", "sklearn"])
def test_the_usual_packages_are_there(run, module: str) -> None:
    execution = run(f"import {module}\n{module}.__version__")
    assert execution.error is None, execution.error
    assert execution.text


def test_envs_of_a_cell_are_seen_by_it_and_gone_after(run) -> None:
    code = "import os\nos.environ.get('CELL')"
    assert run(code, envs={"CELL": "value 'q' \"d\""}).text == repr("value 'q' \"d\"")[1:-1]
    assert run(code).text is None


def test_envs_of_the_sandbox_are_seen_by_the_kernel(server, interpreter_template) -> None:
    with Sandbox.create(envs={"GLOBAL": "g"}) as sandbox:
        assert sandbox.run_code("import os\nos.environ['GLOBAL']").text == "g"
        assert sandbox.run_code("os.environ['GLOBAL']", envs={"GLOBAL": "local"}).text == "local"
        assert sandbox.run_code("os.environ['GLOBAL']").text == "g"


def test_cells_and_commands_share_the_files_and_the_user(shared_interpreter: Sandbox, run) -> None:
    run("open('/home/user/from_cell', 'w').write('cell')")
    assert shared_interpreter.files.read("from_cell") == "cell"
    assert shared_interpreter.commands.run("stat -c %U from_cell").stdout == "user\n"
    assert run("import os\nos.getcwd()").text == "/home/user"


def test_shell_magic_works(run) -> None:
    assert "".join(run("!echo from the shell").logs.stdout).strip() == "from the shell"


def test_a_timeout_raises_and_the_kernel_goes_on(run) -> None:
    run("x = 'survivor'")
    with pytest.raises(TimeoutException):
        run("import time\nwhile True: time.sleep(0.1)", timeout=2)
    assert run("x", timeout=60).text == "survivor"


def test_leaving_in_the_middle_interrupts_the_cell(shared_interpreter: Sandbox, server) -> None:
    context = shared_interpreter.create_code_context()
    headers = {
        "E2b-Sandbox-Id": shared_interpreter.sandbox_id,
        "E2b-Sandbox-Port": "49999",
        "X-Access-Token": shared_interpreter._envd_access_token or "",
    }
    code = "import time\ntry:\n    print(1, flush=True)\n    time.sleep(86385)\nexcept KeyboardInterrupt:\n    seen = 1"
    body = {"code": code, "context_id": context.id, "language": None, "env_vars": None}
    with httpx.stream("POST", f"{server.url}/execute", json=body, headers=headers, timeout=60) as response:
        for line in response.iter_lines():
            if json.loads(line)["type"] == "stdout":
                break
    assert shared_interpreter.run_code("seen", context=context, timeout=60).text == "1"
    shared_interpreter.remove_code_context(context)


def test_contexts_are_apart(interpreter: Sandbox) -> None:
    one = interpreter.create_code_context()
    two = interpreter.create_code_context(cwd="/tmp", language="python")
    assert isinstance(one, Context)
    assert (one.language, one.cwd) == ("python", "/home/user")
    assert two.cwd == "/tmp"
    interpreter.run_code("v = 1", context=one)
    assert interpreter.run_code("v", context=two).error.name == "NameError"
    assert interpreter.run_code("import os\nos.getcwd()", context=two).text == "/tmp"
    assert {one.id, two.id} <= {context.id for context in interpreter.list_code_contexts()}
    interpreter.restart_code_context(one)
    assert interpreter.run_code("v", context=one).error.name == "NameError"
    interpreter.remove_code_context(two.id)
    assert two.id not in {context.id for context in interpreter.list_code_contexts()}
    with pytest.raises(NotFoundException):
        interpreter.run_code("1", context=two)


def test_calls_about_unknown_contexts_are_not_found(shared_interpreter: Sandbox) -> None:
    for call in (shared_interpreter.remove_code_context, shared_interpreter.restart_code_context):
        with pytest.raises(NotFoundException):
            call("no-such-context")


def test_language_python_is_the_default_context(interpreter: Sandbox) -> None:
    interpreter.run_code("shared = 7")
    assert interpreter.run_code("shared", language="python").text == "7"


def test_a_language_that_is_not_installed_is_refused_by_name(shared_interpreter: Sandbox) -> None:
    with pytest.raises((SandboxException, NotFoundException), match="klingon"):
        shared_interpreter.run_code("1", language="klingon")


def test_bash_runs_as_a_language(shared_interpreter: Sandbox) -> None:
    execution = shared_interpreter.run_code("echo from-bash", language="bash")
    assert "from-bash" in "".join(execution.logs.stdout)


def test_a_kernel_that_dies_is_an_error_and_comes_back(interpreter: Sandbox) -> None:
    execution = interpreter.run_code("import os\nos._exit(1)", timeout=60)
    assert execution.error is not None

    def answers() -> bool:
        try:
            return interpreter.run_code("6 * 7", timeout=30).text == "42"
        except SandboxException:
            return False

    eventually(answers, what="the context runs code again", within_s=40)


def test_code_that_waits_for_input_does_not_hang(run) -> None:
    assert run("input('name? ')", timeout=60).error is not None


def test_a_killed_sandbox_is_named_as_the_reason(server, interpreter_template) -> None:
    sandbox = Sandbox.create()
    sandbox.kill()
    with pytest.raises(TimeoutException, match="was not found"):
        sandbox.run_code("1")
