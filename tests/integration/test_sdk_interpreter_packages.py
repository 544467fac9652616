"""What the template `code-interpreter-v1` promises to be there, and that nothing of it costs a kernel that starts."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from e2b_code_interpreter import Execution, Sandbox

Run = Callable[..., Execution]

MODULES = (
    "PIL", "aiohttp", "altair", "bokeh", "bs4", "cv2", "docx", "gensim", "imageio", "jinja2", "joblib", "kaleido",
    "librosa", "lxml", "matplotlib", "nbformat", "nest_asyncio", "nltk", "numba", "numpy", "openpyxl", "orjson",
    "pandas", "plotly", "pypdf", "pytest", "pytz", "requests", "scipy", "seaborn", "skimage", "sklearn", "soundfile",
    "spacy", "sympy", "textblob", "tornado", "urllib3", "xarray", "xlrd",
)  # fmt: skip


WORK = {
    "numba": "import numba\nnumba.njit(lambda n: n * 2)(21)",
    "cv2": "import cv2, numpy\nint(cv2.GaussianBlur(numpy.full((8, 8), 42, numpy.uint8), (3, 3), 0)[0, 0])",
    "spacy": "import spacy\nlen(spacy.blank('en')('one two')) + 40",
    "gensim": "from gensim.corpora import Dictionary\nlen(Dictionary([['a', 'b']])) + 40",
    "soundfile": "import io, numpy, soundfile\nfile = io.BytesIO()\nsoundfile.write(file, numpy.zeros(42), 8000, "
    "format='wav')\nfile.seek(0)\nlen(soundfile.read(file)[0])",
    "librosa": "import librosa, numpy\nint(librosa.get_duration(y=numpy.zeros(42 * 100), sr=100))",
    "skimage": "from skimage import data\nint(data.checkerboard().shape[0] / 200 * 42)",
    "nest_asyncio": "import asyncio, nest_asyncio\nnest_asyncio.apply()\n"
    "async def f(): return 42\nasyncio.get_event_loop().run_until_complete(f())",
}


@pytest.mark.parametrize("quarter", range(4))
def test_a_quarter_of_the_promised_modules_is_imported_and_compiled_parts_work(run: Run, quarter: int) -> None:
    """Many in one kernel: they share what takes long to import."""
    faults = {}
    for module in MODULES[quarter::4]:
        execution = run(WORK.get(module, f"import {module}\n42"), timeout=120)
        if execution.text != "42":
            faults[module] = execution.error.traceback if execution.error else execution.text
    assert not faults


def test_every_promised_tool_is_there(shared_interpreter: Sandbox) -> None:
    tools = "gcc g++ make cc pkg-config node npm git jq"
    missing = f"for tool in {tools}; do command -v $tool >/dev/null || echo $tool; done"
    assert shared_interpreter.commands.run(missing).stdout == ""


def test_an_extension_is_compiled_by_pip_and_imported(shared_interpreter: Sandbox, run: Run) -> None:
    shared_interpreter.files.write(
        "ext/answer.c",
        "#include <Python.h>\nstatic PyObject *get(PyObject *s, PyObject *a) { return PyLong_FromLong(42); }\n"
        'static PyMethodDef m[] = {{"get", get, METH_NOARGS, ""}, {NULL}};\n'
        'static struct PyModuleDef d = {PyModuleDef_HEAD_INIT, "answer", NULL, -1, m};\n'
        "PyMODINIT_FUNC PyInit_answer(void) { return PyModule_Create(&d); }\n",
    )
    setup = (
        "from setuptools import Extension, setup\nsetup(name='answer', ext_modules=[Extension('answer', ['answer.c'])])"
    )
    shared_interpreter.files.write("ext/setup.py", setup)
    installed = run("%pip install --no-index --no-build-isolation /home/user/ext", timeout=120)
    assert installed.error is None, installed.error
    assert run("import answer\nanswer.get()").text == "42", "".join(installed.logs.stdout)


def test_a_kernel_starts_without_any_of_it(run: Run) -> None:
    loaded = json.loads(run("import json, sys\nprint(json.dumps(sorted(sys.modules)))").logs.stdout[0])
    roots = {name.partition(".")[0] for name in loaded}
    # What the kernel itself is made of.
    own = {"orjson", "tornado"}
    assert roots & set(MODULES) - own == set()
