"""The browser's pure parts: actions read as data, the tree's and the page's text, the frame around them."""

from __future__ import annotations

import pytest

from atoll.runtime.browser.accessibility_tree import tree_text
from atoll.runtime.browser.action_language import SIGNATURES, BadActions, Call, parse_actions
from atoll.runtime.browser.browser import address, driver_archive
from atoll.runtime.browser.driver import actions, keys, marks
from atoll.runtime.browser.page_text import page_text


def test_calls_are_read_with_their_arguments_by_name() -> None:
    found = parse_actions("""
# a comment
fill('a12', "two\\nlines", enable_autocomplete_menu=True)
click("5", button="right", modifiers=["Shift"])
scroll(0, -200.5)
tab_focus(-1)
upload_file('7', ("a", "b"))
""")
    assert found == [
        Call("fill", {"bid": "a12", "value": "two\nlines", "enable_autocomplete_menu": True}),
        Call("click", {"bid": "5", "button": "right", "modifiers": ["Shift"]}),
        Call("scroll", {"delta_x": 0, "delta_y": -200.5}),
        Call("tab_focus", {"index": -1}),
        Call("upload_file", {"bid": "7", "file": ["a", "b"]}),
    ]


def test_fences_indentation_and_nothing_at_all_are_understood() -> None:
    assert parse_actions("```python\n    go_back()\n    noop(5)\n```") == [
        Call("go_back", {}),
        Call("noop", {"wait_ms": 5}),
    ]
    assert parse_actions("") == [Call("noop", {})]


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("click('1'", "SyntaxError: '(' was never closed"),
        ("import os", "ValueError: only calls of browser actions are understood, not `import os`"),
        ("page.evaluate('x')", "ValueError: only calls"),
        ("click('1') or click('2')", "ValueError: only calls"),
        ("dance()", "NameError: name 'dance' is not defined"),
        ("__import__('os')", "NameError: name '__import__'"),
        ("click()", "TypeError: click() missing 1 required positional argument: 'bid'"),
        ("click('1', 'left', [], 4)", "TypeError: click() takes 3 positional arguments but 4 were given"),
        ("click('1', bid='2')", "TypeError: click() got multiple values for argument 'bid'"),
        ("click('1', speed=2)", "TypeError: click() got an unexpected keyword argument 'speed'"),
        ("click(**{'bid': '1'})", "TypeError: click() got an unexpected keyword argument '**'"),
        ("click(5)", "ValueError: click(): `bid` is a string, got 5"),
        ("goto(open('/etc/passwd').read())", "ValueError: goto(): `open('/etc/passwd').read()` is not a plain value"),
        ("goto(f'{1}')", "ValueError: goto()"),
        ("click('1', button='thumb')", "ValueError: click(): `button` is one of left, middle, right"),
        ("scroll(True, 1)", "ValueError: scroll(): `delta_x` is a number"),
        ("scroll(1e400, 0)", "ValueError: scroll(): `delta_x`"),
        ("noop(" * 300 + ")" * 300, "SyntaxError"),
        ("noop()\n" * 201, "ValueError: 201 actions at once"),
        ("go_back()\x00", "SyntaxError"),
    ],
)
def test_what_is_not_a_plain_call_is_refused_in_pythons_words(text: str, begin: str) -> None:
    with pytest.raises(BadActions) as refused:
        parse_actions(text)
    assert str(refused.value).startswith(begin)


def test_the_driver_does_every_action_of_the_language_by_the_same_names() -> None:
    assert set(actions.ACTIONS) == set(SIGNATURES)
    for name, parameters in SIGNATURES.items():
        code = actions.ACTIONS[name].__code__  # type: ignore[attr-defined]
        assert code.co_varnames[1 : code.co_argcount] == tuple(p.name for p in parameters), name


def test_key_combinations() -> None:
    assert keys.split_combination("Control+Shift+t") == ["Control", "Shift", "t"]
    assert keys.split_combination("Control++") == ["Control", "+"]
    assert keys.split_combination("+") == ["+"]
    assert keys.split_combination("é") == ["é"]
    for wrong in ("", "Hyper+a", "Control+Foo"):
        with pytest.raises(ValueError, match="Unknown key"):
            keys.split_combination(wrong)


def node(
    number: str, role: str, name: str | None, *children: str, bid: str = "", **properties: object
) -> dict[str, object]:
    made: dict[str, object] = {"nodeId": number, "role": {"value": role}, "childIds": list(children)}
    if name is not None:
        made["name"] = {"value": name}
    if bid:
        made["browsergym_id"] = bid
    made["properties"] = [{"name": key, "value": {"value": value}} for key, value in properties.items()]
    return made


TREE = {
    "nodes": [
        node("1", "RootWebArea", "T", "2", "9", focused=True),
        node("2", "none", None, "3", "4"),
        node("3", "button", "Save it", "5", bid="7", focusable=True, disabled=True),
        node("4", "generic", "", "6", bid="a8", level=2),
        node("5", "StaticText", "Save"),
        node("6", "StaticText", "other"),
        node("9", "LineBreak", "\n", "1"),
    ]
}
FACTS = {
    "7": {"visibility": 1.0, "bbox": [0, 0, 9, 9], "clickable": True, "set_of_marks": True},
    "a8": {"visibility": 0.2, "bbox": None, "clickable": False, "set_of_marks": False},
}


def test_the_tree_is_printed_as_browsergym_prints_it() -> None:
    assert tree_text(TREE, FACTS) == (
        "RootWebArea 'T', focused\n\t[7] button 'Save it', clickable, disabled=True\n\t[a8] generic"
        "\n\t\tStaticText 'other'"
    )
    assert tree_text(TREE, FACTS, visible_only=True) == (
        "RootWebArea 'T', focused\n\t[7] button 'Save it', clickable, disabled=True"
    )
    assert tree_text({"nodes": []}, {}) == ""


def test_a_tree_of_any_depth_is_printed() -> None:
    deep = {"nodes": [node(str(n), "generic", "x", str(n + 1)) for n in range(5000)]}
    assert tree_text(deep, {}).count("\n") == 4999


def snapshot(*rows: tuple[int, int, str, str, dict[str, str]]) -> dict[str, object]:
    """Rows are (parent, node type, name, value, attributes)."""
    strings: list[str] = []

    def number(text: str) -> int:
        strings.append(text)
        return len(strings) - 1

    nodes = {
        "parentIndex": [row[0] for row in rows],
        "nodeType": [row[1] for row in rows],
        "nodeName": [number(row[2]) for row in rows],
        "nodeValue": [number(row[3]) for row in rows],
        "attributes": [[number(part) for pair in row[4].items() for part in pair] for row in rows],
        "contentDocumentIndex": {"index": [], "value": []},
        "isClickable": {"index": [1]},
    }
    layout = {"nodeIndex": [1], "bounds": [[10, 20, 30, 40]], "clientRects": [[0, 0, 30, 40]]}
    document = {"nodes": nodes, "layout": layout, "scrollOffsetX": 0, "scrollOffsetY": 5}
    return {"strings": strings, "documents": [document]}


def test_a_page_becomes_markdown() -> None:
    page = snapshot(
        (-1, 9, "#document", "", {}),
        (0, 1, "H1", "", {}),
        (1, 3, "#text", "Title", {}),
        (0, 1, "P", "", {}),
        (3, 3, "#text", "See  the\n ", {}),
        (3, 1, "A", "", {"href": "/x"}),
        (5, 3, "#text", "page", {}),
        (3, 3, "#text", ".", {}),
        (0, 1, "SCRIPT", "", {}),
        (8, 3, "#text", "evil()", {}),
        (0, 1, "OL", "", {}),
        (10, 1, "LI", "", {}),
        (11, 3, "#text", "one", {}),
        (10, 1, "LI", "", {}),
        (13, 1, "IMG", "", {"alt": "a cat"}),
    )
    assert page_text(page) == "# Title\n\nSee the [page](/x).\n\n  1. one\n  2. a cat\n\n"
    assert page_text({}) == ""


def test_facts_of_elements_are_in_the_coordinates_of_the_window() -> None:
    page = snapshot(
        (-1, 9, "#document", "", {}),
        (0, 1, "A", "", {"bid": "3", "browsergym_visibility_ratio": "0.5", "browsergym_set_of_marks": "1"}),
    )
    assert marks.element_properties(page) == {
        "3": {"visibility": 0.5, "bbox": [10, 15, 30, 40], "clickable": True, "set_of_marks": True}
    }


def test_addresses_as_a_person_types_them() -> None:
    assert address("/workspace/a.pdf") == "file:///workspace/a.pdf"
    assert address("example.com/x") == "http://example.com/x"
    assert address("localhost:8000") == "http://localhost:8000"
    for kept in ("https://example.com", "about:blank", "data:text/html,x"):
        assert address(kept) == kept


def test_the_driver_is_the_same_archive_every_time() -> None:
    assert driver_archive() == driver_archive()
    assert b"__main__.py" in driver_archive()
