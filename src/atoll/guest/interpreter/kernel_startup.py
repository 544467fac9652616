"""Runs inside a Python kernel right after its start; the guest holds this text in memory and sends it as a silent cell.

Adds the two representations that E2B's results have beyond Jupyter's (`data` of DataFrames, `chart` of matplotlib
figures), and `json` of lists and dictionaries; takes the colours out of tracebacks, shows `PIL.Image.show()` as a
result, lets matplotlib draw Chinese, Japanese and Korean, and gives the guest a way to set variables for one cell.
Imports no library that the user has not imported. Standard library and the kernel's own IPython only.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import importlib
import importlib.abc
import os
import posix
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

shell: Any = get_ipython()  # type: ignore[name-defined]  # noqa: F821  (a builtin of every IPython kernel)

_BaseFormatter: Any = importlib.import_module("IPython.core.formatters").BaseFormatter
_ObjectName: Any = importlib.import_module("traitlets").ObjectName
_Unicode: Any = importlib.import_module("traitlets").Unicode


class _DataFormatter(_BaseFormatter):  # type: ignore[misc]
    """A table as column name → list of values, for clients that draw it themselves."""

    format_type = _Unicode("e2b/data")
    print_method = _ObjectName("_repr_e2b_data_")
    _return_type = (dict, str)


class _ChartFormatter(_BaseFormatter):  # type: ignore[misc]
    """A matplotlib figure as titles, axes and points."""

    format_type = _Unicode("e2b/chart")
    print_method = _ObjectName("_repr_e2b_chart_")
    _return_type = (dict, str)

    def pop(self, typ: Any, default: Any = None) -> Any:
        """Keeps what is registered: the inline backend drops figures from every formatter before it adds its own."""
        return default


def _sendable(text: str) -> str:
    """Without lone surrogates: a message that holds one is never sent."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _plain(value: Any) -> Any:
    """A cell of a table as JSON knows it."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _sendable(value)
    if hasattr(value, "isoformat"):
        text = value.isoformat()
        return None if text == "NaT" else text
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return value if value == value and value not in (float("inf"), float("-inf")) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    text = str(value)
    return None if text in ("NaT", "<NA>") else text


_MOST_BYTES = 16 * 1024 * 1024
"""A value that is larger is shown without `data` and `json`: a message of more than 64 MiB never arrives."""

_MOST_BITS = 1024
"""A longer number is no number to those who read JSON; Python itself refuses to write very long ones."""


class _NotJson(Exception):
    """The value has a part that JSON does not know, or is too large."""


def _structured(value: Any) -> Any:
    """A list or a dictionary as JSON; None where it is none: then there is its text alone."""
    left = _MOST_BYTES

    def convert(value: Any) -> Any:
        nonlocal left
        left -= 8 + (len(value) if isinstance(value, str) else 0)
        if left < 0:
            raise _NotJson
        if isinstance(value, str):
            return _sendable(value)
        if value is None or (isinstance(value, int) and value.bit_length() <= _MOST_BITS):
            return value
        if isinstance(value, float):
            return value if value - value == 0 else None
        if isinstance(value, dict):
            return {_json_key(key): convert(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [convert(item) for item in value]
        if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
            return convert(value.tolist())
        if hasattr(value, "isoformat"):
            return str(value.isoformat())
        raise _NotJson

    try:
        return convert(value)
    except (_NotJson, RecursionError):
        return None


def _json_key(key: Any) -> str:
    if key is None or isinstance(key, bool | str | int | float):
        return _sendable(str(key))
    raise _NotJson


def _table(frame: Any) -> Any:
    try:
        if int(frame.memory_usage(deep=True).sum()) > _MOST_BYTES:
            return None
        columns = [str(name) for name in frame.columns]
        return {name: [_plain(v) for v in frame.iloc[:, i].tolist()] for i, name in enumerate(columns)}
    except Exception:
        return None


def _chart(figure: Any) -> Any:
    try:
        axes = figure.get_axes()
        if len(axes) == 1 and (boxes := _box_chart(axes[0])) is not None:
            return boxes
        return _json_only(importlib.import_module("e2b_charts").chart_figure_to_dict(figure)) or None
    except Exception:
        # A kind of figure that cannot be read is still shown as a picture.
        return None


def _box_chart(axes: Any) -> Any:
    """A box plot as E2B's chart, else None. e2b_charts takes matplotlib's default ones for lines."""
    lines = [line.get_xydata().tolist() for line in axes.get_lines()]
    shapes = lines + [patch.get_path().vertices.tolist() for patch in axes.patches if hasattr(patch, "get_path")]
    found = [box for shape in shapes if (box := _rectangle(shape)) is not None]
    for flip in (False, True):
        elements = [_box(box, lines, flip) for box in found]
        if elements and all(elements):
            axis = axes.yaxis if flip else axes.xaxis
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels(), strict=False)
            names = {float(at): tick.get_text() for at, tick in ticks}
            for element in elements:
                element["label"] = names.get(element.pop("at"), "")
            return {
                "type": "box_and_whisker",
                "title": axes.get_title() or None,
                "x_label": axes.get_xlabel() or None,
                "y_label": axes.get_ylabel() or None,
                "x_unit": _unit(axes.get_xlabel()),
                "y_unit": _unit(axes.get_ylabel()),
                "elements": elements,
            }
    return None


def _rectangle(points: Any) -> Any:
    """(left, right, bottom, top) of a closed rectangle, else None."""
    if len(points) not in (5, 6) or len({tuple(point) for point in points[:4]}) != 4:
        return None
    xs, ys = sorted({p[0] for p in points[:4]}), sorted({p[1] for p in points[:4]})
    return (xs[0], xs[1], ys[0], ys[1]) if len(xs) == 2 and len(ys) == 2 else None


def _box(box: Any, lines: Any, flip: bool) -> Any:
    """The numbers of one box from the lines around it (`flip`: it lies on its side); None if no median is in it."""
    left, right, low, high = (box[2], box[3], box[0], box[1]) if flip else box
    at = (left + right) / 2
    found: dict[str, Any] = {"at": at, "min": low, "first_quartile": low, "third_quartile": high, "max": high}
    found |= {"median": None, "outliers": []}
    for line in lines:
        points = [(y, x) if flip else (x, y) for x, y in line]
        xs, ys = {x for x, _ in points}, sorted(y for _, y in points)
        centred = len(xs) == 1 and abs(next(iter(xs)) - at) < 1e-9
        if len(points) == 2 and xs == {left, right} and ys[0] == ys[1] and low <= ys[0] <= high:
            found["median"] = ys[0]
        elif centred and len(points) == 2 and ys[1] == low:
            found["min"] = ys[0]
        elif centred and len(points) == 2 and ys[0] == high:
            found["max"] = ys[1]
        elif centred and (ys[0] < low or ys[-1] > high):
            found["outliers"] = ys
    return found if found["median"] is not None else None


def _unit(label: str) -> str | None:
    """`time (s)` → `s`."""
    return label.rpartition("(")[2][:-1].strip() or None if label.endswith(")") and "(" in label else None


def _json_only(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _json_only(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_only(item) for item in value]
    # An enumeration's member is its value (`ChartType.LINE` is a str as well: take the plain one).
    return _plain(getattr(value, "value", value))


def _show_image(image: Any, *_: Any, **__: Any) -> None:
    importlib.import_module("IPython.display").display(image)


class _Variables:
    """os.environ for the length of one cell; `permanent` ones stay."""

    def __init__(self) -> None:
        self._saved: dict[str, str | None] = {}

    def enter(self, variables: dict[str, str], permanent: dict[str, str]) -> None:
        os.environ.update(permanent)
        self._saved = {name: os.environ.get(name) for name in variables}
        os.environ.update(variables)

    def leave(self) -> None:
        for name, value in self._saved.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        self._saved = {}


class _AfterImport(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Calls a function with a module right after its first import, wherever it is imported."""

    def __init__(self, calls: dict[str, Callable[[Any], None]]) -> None:
        self._calls = calls
        self._loaders: dict[str, Any] = {}

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name not in self._calls:
            return None
        others = (finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec"))
        spec = next((found for finder in others if (found := finder.find_spec(name, path, target)) is not None), None)
        if spec is not None and spec.loader is not None:
            self._loaders[name] = spec.loader
            spec.loader = self
        return spec

    def create_module(self, spec: Any) -> Any:
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: Any) -> None:
        loader = self._loaders.pop(module.__name__)
        module.__spec__.loader = module.__loader__ = loader
        loader.exec_module(module)
        try:
            self._calls.pop(module.__name__)(module)
        except Exception as error:
            print(f"{module.__name__} could not be set up for results: {error!r}", file=sys.stderr)


def _show_pictures(pillow: Any) -> None:
    """`Image.show()` would look for a viewer; here it is a result."""
    pillow.Image.show = _show_image


def _plotly_as_html(renderers: Any) -> None:
    """Also a page of its own (one result, the library from its usual address): not every client knows plotly's JSON."""
    chosen = renderers.renderers
    if chosen.default == "plotly_mimetype" and "PLOTLY_RENDERER" not in os.environ:
        chosen.default = "plotly_mimetype+colab"


_FONTS_OF_THE_REST = ("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Noto Sans CJK JP", "Droid Sans Fallback")
_FONTS_ELSEWHERE = (
    "SimHei", "SimSun", "Microsoft YaHei", "PingFang SC", "Heiti TC", "Arial Unicode MS", "Noto Sans CJK SC",
    "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC", "WenQuanYi Zen Hei", "MS Gothic", "Yu Gothic",
    "Meiryo", "Hiragino Sans", "IPAexGothic", "TakaoGothic", "Malgun Gothic", "NanumGothic", "AppleGothic",
)  # fmt: skip
"""What charts ask for by name because other systems have it: the font that is here stands in."""


def _draw_every_script(font_manager: Any) -> None:
    """What the chosen fonts cannot draw comes from a font that can; styles and seaborn's themes choose their own."""
    fonts = font_manager.fontManager.ttflist
    there = {font.name: font for font in fonts}
    family = next((name for name in _FONTS_OF_THE_REST if name in there), None)
    if family is None:
        return
    # It has one weight: asked for as bold it would be drawn all the same, with a warning.
    missing = [family, *(name for name in _FONTS_ELSEWHERE if name not in there)]
    fonts += [dataclasses.replace(there[family], name=name, weight=w) for name in missing for w in (400, 700)]
    find = font_manager.FontManager._find_fonts_by_props

    def find_with_the_rest(self: Any, prop: Any, fontext: str = "ttf", *args: Any, **kwargs: Any) -> Any:
        found = find(self, prop, fontext, *args, **kwargs)
        more = self.findfont(family, fontext) if fontext == "ttf" else None
        return found if more is None or more in found else [*found, more]

    font_manager.FontManager._find_fonts_by_props = find_with_the_rest


_MOST_IN_A_PIECE = 128 * 1024
_MOST_WAITING = 64
"""Messages before a queue of the kernel's: what is printed and waits for a reader is a few times 8 MiB at most."""


def _wait_until_sent(thread: Any) -> None:
    """All that `thread`, which sends, was given before."""
    sent = threading.Event()
    thread.schedule(sent.set)
    sent.wait()


def _at_the_readers_pace(thread: Any) -> None:
    """Output waits for who reads it: by itself the kernel drops messages when many wait, and piles up the others."""
    zmq = importlib.import_module("zmq")

    def keep_all() -> None:
        thread.socket.setsockopt(zmq.SNDHWM, _MOST_WAITING)
        thread.socket.setsockopt(zmq.XPUB_NODROP, 1)

    thread.schedule(keep_all)
    send = thread.send_multipart

    def send_and_wait(*args: Any, **kwargs: Any) -> None:
        send(*args, **kwargs)
        if len(thread._events) > _MOST_WAITING and threading.current_thread() is not thread.thread:
            _wait_until_sent(thread)

    thread.send_multipart = send_and_wait


def _in_pieces(kind: Any) -> None:
    """What is printed leaves in messages of a bounded size: one of more than 64 MiB never arrives."""
    write = kind.write

    def write_in_pieces(self: Any, text: Any) -> Any:
        written = getattr(self, "_atoll_written", 0)
        if not isinstance(text, str) or written + len(text) < _MOST_IN_A_PIECE:
            self._atoll_written = written + len(text) if isinstance(text, str) else written
            return write(self, text)
        for start in range(0, len(text), _MOST_IN_A_PIECE):
            write(self, text[start : start + _MOST_IN_A_PIECE])
            self.flush()
        self._atoll_written = 0
        return len(text)

    kind.write = write_in_pieces


class _Forgotten(dict):  # type: ignore[type-arg]
    """IPython keeps a copy of all that was ever printed or shown, for a notebook's file that nobody writes here."""

    def __missing__(self, key: Any) -> list[Any]:
        return []


def _write_as_the_class_does() -> None:
    """The cell in which this runs had its streams' `write` put back when it ended, to what it was before."""
    for stream in (sys.stdout, sys.stderr):
        vars(stream).pop("write", None)
    shell.events.unregister("pre_execute", _write_as_the_class_does)


_FLUSHED_AFTER_S = 0.02
"""ipykernel's own 0.2 s would be lost of what was printed before a kernel is killed from outside."""


def _close_orderly() -> None:
    """What was published arrives: the sockets wait for their reader (a second when he has left) before they close."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
        # A flush hands its messages to the thread that sends, behind whatever that has to do already.
        _wait_until_sent(shell.kernel.iopub_thread)
    with contextlib.suppress(Exception):
        shell.kernel.parent.close()


_CLOSE_IN_MAIN_THREAD = signal.SIGRTMAX - 1
_CLOSED_AFTER_S = 2.0
"""The main thread may be in a library that does not look at signals."""


_closed = threading.Event()


def _close_and_wait_for_the_end(*_: Any) -> None:
    _close_orderly()
    _closed.set()
    while True:
        signal.pause()


def _close_from_another_thread() -> None:
    """The sockets are the main thread's."""
    signal.pthread_kill(threading.main_thread().ident or 0, _CLOSE_IN_MAIN_THREAD)
    _closed.wait(_CLOSED_AFTER_S)


def _from_another_thread(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Its main thread is not to be woken again: where `call` fails, the kernel ends all the same."""
    _close_from_another_thread()
    try:
        return call(*args, **kwargs)
    finally:
        posix._exit(1)


def _ends_itself_orderly(name: str, is_the_end: Callable[..., bool]) -> None:
    """Of the function `name` of `os`: what the cell has printed before it is not lost."""
    call, kernel = getattr(os, name), os.getpid()

    @functools.wraps(call)
    def closing_first(*args: Any, **kwargs: Any) -> Any:
        if os.getpid() == kernel and is_the_end(*args, **kwargs):
            in_main_thread = threading.current_thread() is threading.main_thread()
            if not in_main_thread:
                return _from_another_thread(call, *args, **kwargs)
            _close_orderly()
        return call(*args, **kwargs)

    setattr(os, name, closing_first)


def _is_program(path: Any = "", *_: Any, **__: Any) -> bool:
    """Whether `execv` may succeed; a search along PATH asks for many that are not there."""
    return isinstance(path, str | bytes | os.PathLike) and os.path.isfile(path) and os.access(path, os.X_OK)


def _exit_now() -> None:
    """`exit()`: in this cell, which reports it. By itself ipykernel ends a moment later, maybe in the next one."""
    if not shell.keepkernel_on_exit:
        for last in (shell.kernel.parent.close, shell.kernel.iopub_thread.stop):
            atexit.unregister(last)  # only after what the handlers print
        with contextlib.suppress(Exception):
            atexit._run_exitfuncs()
        os._exit(0)


def _install() -> None:
    _at_the_readers_pace(shell.kernel.iopub_thread)
    _in_pieces(type(sys.stdout))
    for stream in (sys.stdout, sys.stderr):
        vars(stream)["flush_timeout"] = None
        vars(stream)["flush_interval"] = _FLUSHED_AFTER_S
    for name in ("_exit", "abort"):
        _ends_itself_orderly(name, lambda *_, **__: True)
    for name in ("execv", "execve"):
        _ends_itself_orderly(name, _is_program)
    signal.signal(_CLOSE_IN_MAIN_THREAD, _close_and_wait_for_the_end)
    _ends_itself_orderly("kill", lambda *args, **_: args == (os.getpid(), signal.SIGKILL))
    shell.ask_exit = _exit_now
    shell._tee = lambda channel: contextlib.nullcontext()
    shell.history_manager.outputs = _Forgotten()
    shell.events.register("pre_execute", _write_as_the_class_does)
    formatter = shell.display_formatter
    tables = _DataFormatter(parent=formatter)
    charts = _ChartFormatter(parent=formatter)
    formatter.formatters["e2b/data"] = tables
    formatter.formatters["e2b/chart"] = charts
    # By name: nothing is imported until the user does. pandas 3 moved the class's module.
    for module in ("pandas", "pandas.core.frame"):
        tables.for_type_by_name(module, "DataFrame", _table)
    charts.for_type_by_name("matplotlib.figure", "Figure", _chart)
    for kind in (list, dict):
        formatter.formatters["application/json"].for_type(kind, _structured)
    # Nobody looks at these tracebacks in a terminal.
    shell.colors = "nocolor"
    shell.atoll_variables = _Variables()
    calls = {
        "PIL.Image": _show_pictures,
        "plotly.io._renderers": _plotly_as_html,
        "matplotlib.font_manager": _draw_every_script,
    }
    for finder in sys.meta_path:
        aside = getattr(finder, "atoll_aside", {})
        for name in calls.keys() & aside.keys():
            calls.pop(name)(aside[name])
    sys.meta_path.insert(0, _AfterImport(calls))


_install()
