"""What a cell shows: every format that the SDK's `Result` knows, from the libraries that people show things with."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from e2b_code_interpreter import Execution, Result, Sandbox

from support.tiers import one_tier

pytestmark = one_tier("made by the kernel's own code of values, which no tier changes")

Run = Callable[..., Execution]

PLOTLY = "application/vnd.plotly.v1+json"


def only(execution: Execution) -> Result:
    assert execution.error is None, execution.error
    (result,) = execution.results
    return result


@pytest.mark.parametrize("code", ["1/0", "def", "import no_such_module", "raise KeyError('k')", "%no_such_magic"])
def test_an_error_is_told_without_a_terminals_colours(run: Run, code: str) -> None:
    execution = run(code)
    assert "\x1b" not in str(execution.error or "") + "".join(execution.logs.stderr)
    assert execution.error or execution.logs.stderr


def test_colours_that_the_code_prints_are_kept(run: Run) -> None:
    assert run(r"print('\x1b[31mred\x1b[0m')").logs.stdout == ["\x1b[31mred\x1b[0m\n"]


def test_a_list_or_dictionary_is_json_as_well_and_complete(run: Run) -> None:
    assert only(run("{'a': [1, 2.5, None, True], 2: {'b': ('x', 'y')}}")).json == {
        "a": [1, 2.5, None, True],
        "2": {"b": ["x", "y"]},
    }
    long = only(run("list(range(5000))"))
    assert long.json == list(range(5000))
    assert long.text.startswith("[0,\n 1,\n 2")


def test_numbers_of_numpy_and_days_are_json(run: Run) -> None:
    code = "import datetime, numpy as np\n{'n': np.float64(1.5), 'a': np.arange(3), 'd': datetime.date(2024, 1, 2)}"
    assert only(run(code)).json == {"n": 1.5, "a": [0, 1, 2], "d": "2024-01-02"}


@pytest.mark.parametrize("code", ["[object()]", "{(1, 2): 3}", "a = []; a.append(a); a", "list(range(3_000_000))"])
def test_what_is_no_json_or_too_large_is_text_alone(run: Run, code: str) -> None:
    result = only(run(code))
    assert result.json is None
    assert result.text


def test_half_characters_and_very_long_numbers_do_not_lose_the_result(run: Run) -> None:
    assert only(run("['\\ud800']")).json == ["?"]
    assert only(run("[2 ** 5000]")).json is None


def test_a_table_that_is_too_large_to_be_sent_is_still_shown(run: Run) -> None:
    result = only(run("import numpy, pandas\npandas.DataFrame(numpy.ones((4000, 2000)))"))
    assert result.data is None
    assert "<table" in result.html
    assert "4000 rows" in result.text


def test_a_long_string_is_complete(run: Run) -> None:
    assert only(run("'ab' * 500_000")).text == "ab" * 500_000


def test_a_styled_table_is_html(run: Run) -> None:
    assert "<table" in only(run("import pandas as pd\npd.DataFrame({'a': [1, 2]}).style.highlight_max()")).html


@pytest.mark.parametrize("show", ["figure.show()", "figure"])
def test_a_plotly_figure_is_a_page_and_plotlys_own_json(run: Run, show: str) -> None:
    result = only(run(f"import plotly.express as px\nfigure = px.line(x=[1, 2], y=[3, 4])\n{show}"))
    assert result.extra[PLOTLY]["data"]
    assert "Plotly.newPlot" in result.html
    assert len(result.html) < 100_000, "the page carries the library itself"


def test_the_renderer_of_plotly_that_the_user_chose_is_used(run: Run) -> None:
    code = (
        "import os; os.environ['PLOTLY_RENDERER'] = 'plotly_mimetype'\nimport plotly.graph_objects as go\ngo.Figure()"
    )
    result = only(run(code))
    assert PLOTLY in result.extra
    assert result.html is None


def test_a_picture_shown_in_the_cell_that_imports_its_library_is_a_result(run: Run) -> None:
    result = only(run("from PIL import Image\nImage.new('RGB', (4, 4), 'red').show()"))
    assert result.png
    assert not result.is_main_result


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("import altair, pandas\naltair.Chart(pandas.DataFrame({'a': [1]})).mark_bar().encode(x='a')", "html"),
        ("import seaborn\nseaborn.set_theme()\nseaborn.lineplot(x=[1, 2], y=[3, 4]); None", "png"),
        ("import sympy\nsympy.Integral(sympy.Symbol('x') ** 2)", "latex"),
        ("from PIL import Image\nImage.new('RGB', (4, 4))", "png"),
        ("from bokeh.plotting import figure, output_notebook, show\noutput_notebook()\nshow(figure())", "html"),
        ("import xarray\nxarray.DataArray([1, 2])", "html"),
        ("import matplotlib.pyplot as plt\nfigure, axes = plt.subplots()\nplt.close()\nfigure", "png"),
    ],
    ids=["altair", "seaborn", "sympy", "pillow", "bokeh", "xarray", "matplotlib"],
)
def test_what_a_library_shows_in_a_notebook_is_a_result(run: Run, code: str, wanted: str) -> None:
    execution = run(code)
    assert execution.error is None, execution.error
    assert any(getattr(result, wanted) for result in execution.results)


CHOOSE_FONTS = {
    "default": "",
    "seaborn's theme": "import seaborn; seaborn.set_theme()",
    "a style": "plt.style.use('ggplot')",
    "a font of another system": "plt.rcParams['font.sans-serif'] = ['SimHei']",
}


@pytest.mark.parametrize("choose", CHOOSE_FONTS.values(), ids=CHOOSE_FONTS)
def test_a_chart_draws_chinese_japanese_and_korean_labels_without_a_warning(run: Run, choose: str) -> None:
    """A glyph that is missing would be drawn as the same box for every character."""
    execution = run(
        f"import io, matplotlib.pyplot as plt\n{choose}\n"
        "def drawn(text):\n"
        "    figure = plt.figure(figsize=(1, 1)); figure.text(0.2, 0.2, text, fontweight='bold')\n"
        "    file = io.BytesIO(); figure.savefig(file); plt.close(figure); return file.getvalue()\n"
        "len({drawn(c) for c in '中文日本語ひカ한국어'})"
    )
    assert execution.error is None, execution.error
    assert execution.text == "10"
    assert execution.logs.stderr == []


def test_a_program_draws_them_as_well(shared_interpreter: Sandbox) -> None:
    shared_interpreter.files.write(
        "draw.py", "import matplotlib.pyplot as plt\nplt.title('中文 ひ 한국')\nplt.savefig('a.png')"
    )
    ran = shared_interpreter.commands.run("python draw.py", timeout=120)
    assert ran.stderr == ""
