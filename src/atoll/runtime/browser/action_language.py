"""BrowserGym's action language, read as data: calls of known functions with literal arguments. Nothing is ever run.

Upstream executes an agent's text as Python beside the browser; here whatever is not such a call is refused, with the
words Python would have for it where it has some.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

BUTTONS = ("left", "middle", "right")
MODIFIERS = ("Alt", "Control", "ControlOrMeta", "Meta", "Shift")
MAX_CALLS = 200


class BadActions(Exception):
    """The text is not a sequence of known calls. The message begins with the name of the Python error that fits."""


@dataclass(frozen=True)
class Call:
    """One action with its arguments by name."""

    name: str
    arguments: Mapping[str, Any]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _text_or_texts(value: Any) -> bool:
    return _text(value) or _texts(value)


def _button(value: Any) -> bool:
    return value in BUTTONS


def _modifiers(value: Any) -> bool:
    return _texts(value) and all(item in MODIFIERS for item in value)


Check = Callable[[Any], bool]


@dataclass(frozen=True)
class Parameter:
    """`words` is how a wrong value is described."""

    name: str
    check: Check
    words: str
    required: bool = True


def _p(name: str, check: Check, words: str, required: bool = True) -> Parameter:
    return Parameter(name, check, words, required)


_BID = _p("bid", _text, "a string")
_X, _Y = _p("x", _number, "a number"), _p("y", _number, "a number")
_BUTTON = _p("button", _button, f"one of {', '.join(BUTTONS)}", False)
_MODIFIERS = _p("modifiers", _modifiers, f"a list of {', '.join(MODIFIERS)}", False)
_FILE = _p("file", _text_or_texts, "a path or a list of paths")
_KEY = _p("key", _text, "a string")
_TEXT = _p("text", _text, "a string")


def _numbers(*names: str) -> tuple[Parameter, ...]:
    return tuple(_p(name, _number, "a number") for name in names)


SIGNATURES: Mapping[str, tuple[Parameter, ...]] = {
    "send_msg_to_user": (_TEXT,),
    "report_infeasible": (_p("reason", _text, "a string"),),
    "noop": (_p("wait_ms", _number, "a number", False),),
    "fill": (_BID, _p("value", _text, "a string"), _p("enable_autocomplete_menu", _flag, "True or False", False)),
    "check": (_BID,),
    "uncheck": (_BID,),
    "select_option": (_BID, _p("options", _text_or_texts, "a string or a list of strings")),
    "click": (_BID, _BUTTON, _MODIFIERS),
    "dblclick": (_BID, _BUTTON, _MODIFIERS),
    "hover": (_BID,),
    "press": (_BID, _p("key_comb", _text, "a string")),
    "focus": (_BID,),
    "clear": (_BID,),
    "drag_and_drop": (_p("from_bid", _text, "a string"), _p("to_bid", _text, "a string")),
    "scroll": _numbers("delta_x", "delta_y"),
    "scroll_at": _numbers("x", "y", "dx", "dy"),
    "mouse_move": (_X, _Y),
    "mouse_up": (_X, _Y, _BUTTON),
    "mouse_down": (_X, _Y, _BUTTON),
    "mouse_click": (_X, _Y, _BUTTON),
    "mouse_dblclick": (_X, _Y, _BUTTON),
    "mouse_drag_and_drop": _numbers("from_x", "from_y", "to_x", "to_y"),
    "keyboard_press": (_KEY,),
    "keyboard_up": (_KEY,),
    "keyboard_down": (_KEY,),
    "keyboard_type": (_TEXT,),
    "keyboard_insert_text": (_TEXT,),
    "goto": (_p("url", _text, "a string"),),
    "go_back": (),
    "go_forward": (),
    "new_tab": (),
    "tab_close": (),
    "tab_focus": (_p("index", _whole, "a whole number"),),
    "upload_file": (_BID, _FILE),
    "mouse_upload_file": (_X, _Y, _FILE),
}
"""BrowserGym's functions (0.14) with their parameters in order."""


def parse_actions(text: str) -> list[Call]:
    """The calls of an agent's text, one or more, in order. An empty text is `noop()`. Raises BadActions."""
    try:
        body = ast.parse(_dedented(text)).body
    except SyntaxError as error:
        raise BadActions(f"SyntaxError: {error.msg} (line {error.lineno})") from None
    except (ValueError, RecursionError, MemoryError):
        raise BadActions("SyntaxError: the actions cannot be read") from None
    if not body:
        return [Call("noop", {})]
    if len(body) > MAX_CALLS:
        raise BadActions(f"ValueError: {len(body)} actions at once; at most {MAX_CALLS} are taken")
    return [_call(statement) for statement in body]


def _dedented(text: str) -> str:
    lines = text.strip("\n").splitlines()
    fenced = [line for line in lines if not line.strip().startswith("```")]
    margin = min((len(line) - len(line.lstrip()) for line in fenced if line.strip()), default=0)
    return "\n".join(line[margin:] for line in fenced)


def _call(statement: ast.stmt) -> Call:
    node = statement.value if isinstance(statement, ast.Expr) else None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        shown = ast.unparse(statement).splitlines()[0][:80]
        raise BadActions(f"ValueError: only calls of browser actions are understood, not `{shown}`")
    name = node.func.id
    parameters = SIGNATURES.get(name)
    if parameters is None:
        raise BadActions(f"NameError: name '{name}' is not defined; the actions are {', '.join(SIGNATURES)}")
    given: dict[str, Any] = {}
    if len(node.args) > len(parameters):
        raise BadActions(
            f"TypeError: {name}() takes {len(parameters)} positional arguments but {len(node.args)} were given"
        )
    for parameter, argument in zip(parameters, node.args, strict=False):
        given[parameter.name] = _literal(name, argument)
    known = {parameter.name for parameter in parameters}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg not in known:
            raise BadActions(f"TypeError: {name}() got an unexpected keyword argument '{keyword.arg or '**'}'")
        if keyword.arg in given:
            raise BadActions(f"TypeError: {name}() got multiple values for argument '{keyword.arg}'")
        given[keyword.arg] = _literal(name, keyword.value)
    for parameter in parameters:
        if parameter.name not in given:
            if parameter.required:
                raise BadActions(f"TypeError: {name}() missing 1 required positional argument: '{parameter.name}'")
        elif not parameter.check(given[parameter.name]):
            shown = repr(given[parameter.name])[:80]
            raise BadActions(f"ValueError: {name}(): `{parameter.name}` is {parameter.words}, got {shown}")
    return Call(name, given)


def _literal(name: str, node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise BadActions(f"ValueError: {name}(): `{ast.unparse(node)[:80]}` is not a plain value") from None
    return list(value) if isinstance(value, tuple) else value
