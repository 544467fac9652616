"""Keys by the names that actions use (`Enter`, `a`, `KeyA`, `Control+Shift+t`), as the DevTools protocol names them."""

from __future__ import annotations

from dataclasses import dataclass

MODIFIERS = {"Alt": 1, "Control": 2, "Meta": 4, "Shift": 8}
_SHIFTED = dict(zip("`1234567890-=[]\\;',./", '~!@#$%^&*()_+{}|:"<>?', strict=True))
_PUNCTUATION = {
    "`": ("Backquote", 192), "-": ("Minus", 189), "=": ("Equal", 187), "[": ("BracketLeft", 219),
    "]": ("BracketRight", 221), "\\": ("Backslash", 220), ";": ("Semicolon", 186), "'": ("Quote", 222),
    ",": ("Comma", 188), ".": ("Period", 190), "/": ("Slash", 191),
}  # fmt: skip
_NAMED = {
    "Enter": (13, "\r"), "Tab": (9, ""), "Backspace": (8, ""), "Delete": (46, ""), "Escape": (27, ""),
    "ArrowLeft": (37, ""), "ArrowUp": (38, ""), "ArrowRight": (39, ""), "ArrowDown": (40, ""), "Home": (36, ""),
    "End": (35, ""), "PageUp": (33, ""), "PageDown": (34, ""), "Insert": (45, ""), "CapsLock": (20, ""),
    "ContextMenu": (93, ""), "Pause": (19, ""), "PrintScreen": (44, ""), "NumLock": (144, ""),
}  # fmt: skip
_SIDES = {"Shift": 16, "Control": 17, "Alt": 18, "Meta": 91}


@dataclass(frozen=True)
class Key:
    """`text` is what it types, "" for none; `modifier` is its bit where it is one."""

    key: str
    code: str
    number: int
    text: str = ""
    shifted: str = ""
    modifier: int = 0


def _table() -> dict[str, Key]:
    found: dict[str, Key] = {"Space": Key(" ", "Space", 32, " ", " ")}
    for letter in "abcdefghijklmnopqrstuvwxyz":
        key = Key(letter, f"Key{letter.upper()}", ord(letter.upper()), letter, letter.upper())
        found[letter] = found[key.code] = key
        found[letter.upper()] = Key(letter.upper(), key.code, key.number, letter.upper(), letter.upper())
    digits = {str(n): (f"Digit{n}", 48 + n) for n in range(10)}
    for char, (code, number) in {**digits, **_PUNCTUATION}.items():
        upper = _SHIFTED[char]
        found[char] = found[code] = Key(char, code, number, char, upper)
        found[upper] = Key(upper, code, number, upper, upper)
    for name, (number, text) in _NAMED.items():
        found[name] = Key(name, name, number, text, text)
    for n in range(1, 13):
        found[f"F{n}"] = Key(f"F{n}", f"F{n}", 111 + n)
    for name, number in _SIDES.items():
        for spelled in (name, f"{name}Left", f"{name}Right"):
            code = spelled if spelled != name else f"{name}Left"
            found[spelled] = Key(name, code, number, modifier=MODIFIERS[name])
    found["ControlOrMeta"] = found["Control"]
    found[" "] = found["Space"]
    found["\n"] = found["\r"] = found["Return"] = found["NumpadEnter"] = found["Enter"]
    found["\t"] = found["Tab"]
    return found


KEYS = _table()


def split_combination(text: str) -> list[str]:
    """`Control+Shift+a` → its keys in order; a final `+` is the key plus. Raises ValueError for an unknown one."""
    names: list[str] = []
    rest = text
    while rest:
        cut = rest.find("+", 1)
        name, rest = (rest, "") if cut < 0 else (rest[:cut], rest[cut + 1 :])
        names.append(name)
    for name in names:
        if name not in KEYS and len(name) != 1:
            raise ValueError(f'Unknown key: "{name}"')
    if not names:
        raise ValueError('Unknown key: ""')
    return names
