"""Environment variables of one cell, as code of its language: set before it, as they were after it. Pure text.

What the sandbox's own variables have become since the kernel started (`permanent`) is set for good in the same way.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping


def code_around(kernel: str, env: Mapping[str, str], permanent: Mapping[str, str]) -> tuple[str, str]:
    """Code to run before a cell, and code to run after it; "" for nothing to do. Unknown kernels: nothing."""
    if not env and not permanent:
        return "", ""
    write = _LANGUAGES.get(kernel)
    if write is None:
        return "", ""
    enter, leave = write(env, permanent)
    return enter, leave if env else ""


def _python(env: Mapping[str, str], permanent: Mapping[str, str]) -> tuple[str, str]:
    # JSON is not Python, but a JSON string literal is one.
    given = json.dumps(json.dumps([dict(env), dict(permanent)]))
    enter = f"get_ipython().atoll_variables.enter(*__import__('json').loads({given}))"
    return enter, "get_ipython().atoll_variables.leave()"


def _bash(env: Mapping[str, str], permanent: Mapping[str, str]) -> tuple[str, str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in permanent.items()]
    lines += [
        f'__atoll_had_{n}="${{{n}+x}}" __atoll_was_{n}="${{{n}-}}"; export {n}={shlex.quote(v)}' for n, v in env.items()
    ]
    undo = [
        f'if [ -n "$__atoll_had_{n}" ]; then export {n}="$__atoll_was_{n}"; else unset {n}; fi; '
        f"unset __atoll_had_{n} __atoll_was_{n}"
        for n in env
    ]
    return "\n".join(lines), "\n".join(undo)


def _javascript(env: Mapping[str, str], permanent: Mapping[str, str]) -> tuple[str, str]:
    keep = f"globalThis.__atoll={{}};for(const[n,v]of Object.entries({json.dumps(dict(permanent))}))Deno.env.set(n,v);"
    sets = f"for(const[n,v]of Object.entries({json.dumps(dict(env))})){{__atoll[n]=Deno.env.get(n);Deno.env.set(n,v)}}"
    restore = "{for(const[n,v]of Object.entries(__atoll))v===undefined?Deno.env.delete(n):Deno.env.set(n,v);}"
    return f"{{{keep}{sets}}}", restore


def _r(env: Mapping[str, str], permanent: Mapping[str, str]) -> tuple[str, str]:
    enter = [f"Sys.setenv({name}={_r_text(value)})" for name, value in permanent.items()]
    names = f"c({', '.join(_r_text(name) for name in env)})"
    if env:
        enter.append(f".atoll_was <- Sys.getenv({names}, unset=NA, names=TRUE)")
    enter += [f"Sys.setenv({name}={_r_text(value)})" for name, value in env.items()]
    leave = (
        "invisible({ for (.n in names(.atoll_was)) if (is.na(.atoll_was[[.n]])) Sys.unsetenv(.n) else "
        'do.call(Sys.setenv, setNames(list(.atoll_was[[.n]]), .n)); rm(".n", ".atoll_was") })'
    )
    return f"invisible({{ {'; '.join(enter)} }})", leave


def _r_text(text: str) -> str:
    """An R string: JSON's escapes are R's, but for two that JSON does not need."""
    return json.dumps(text, ensure_ascii=False)


def _java(env: Mapping[str, str], permanent: Mapping[str, str]) -> tuple[str, str]:
    """`System.getenv` and `System.getProperty` both: E2B sets properties, programs read the environment."""
    calls = [f"__Atoll.keep({json.dumps(n)}, {json.dumps(v)});" for n, v in permanent.items()]
    calls += [f"__Atoll.enter({json.dumps(n)}, {json.dumps(v)});" for n, v in env.items()]
    return "{ " + " ".join(calls) + " }", "{ __Atoll.leave(); }"


_LANGUAGES = {
    "python3": _python,
    "bash": _bash,
    "javascript": _javascript,
    "ir": _r,
    "java": _java,
}
