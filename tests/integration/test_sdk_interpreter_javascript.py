"""JavaScript and TypeScript cells: what code that was written for Node expects to find."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from e2b_code_interpreter import Execution, Sandbox

from support.tiers import one_tier

pytestmark = one_tier("the kernel's own rules; every language runs in each tier: test_sdk_interpreter_languages.py")

Run = Callable[..., Execution]


@pytest.fixture
def js(shared_interpreter: Sandbox) -> Iterator[Run]:
    """Runs code in a fresh JavaScript context, in a directory of its own (`/tmp/js`)."""
    shared_interpreter.commands.run("rm -rf /tmp/js && mkdir /tmp/js")
    context = shared_interpreter.create_code_context(language="javascript", cwd="/tmp/js")
    yield lambda code, **options: shared_interpreter.run_code(code, context=context, **options)
    shared_interpreter.remove_code_context(context)


def value(execution: Execution) -> str | None:
    assert execution.error is None, execution.error
    return execution.text


def test_require_has_nodes_own_modules(js: Run) -> None:
    assert value(js("const os = require('os'); typeof os.cpus")) == "function"
    assert value(js("require('node:fs').existsSync('/tmp/js')")) == "true"


def test_what_node_has_in_every_file_is_there(js: Run) -> None:
    names = ["require", "module", "exports", "__dirname", "__filename", "process", "Buffer", "global", "setImmediate"]
    missing = value(js(f"JSON.stringify({json.dumps(names)}.filter(n => typeof globalThis[n] === 'undefined'))"))
    assert json.loads(missing or "") == []
    assert value(js("__dirname")) == "/tmp/js"
    assert value(js("process.cwd()")) == "/tmp/js"
    assert value(js("module.exports.a = 1; exports.a")) == "1"


def test_a_cell_may_use_those_names_for_its_own(js: Run) -> None:
    code = "import { createRequire } from 'module'; const require = createRequire('/tmp/js/'); typeof require('path')"
    assert value(js(code)) == "object"
    assert value(js("const __dirname = 'mine'; __dirname")) == "mine"


def test_files_beside_are_required_and_imported(js: Run, shared_interpreter: Sandbox) -> None:
    shared_interpreter.files.write("/tmp/js/own.js", "module.exports = { own: __dirname }")
    shared_interpreter.files.write("/tmp/js/esm.mjs", "export const q = 3")
    assert value(js("require('./own').own")) == "/tmp/js"
    assert value(js("import { q } from './esm.mjs'; q")) == "3"


def test_a_package_installed_while_the_kernel_runs_is_required_and_imported(
    js: Run, shared_interpreter: Sandbox
) -> None:
    assert value(js("1")) == "1"
    manifest = {"name": "mine", "version": "1.0.0"}
    shared_interpreter.files.write("/tmp/own/package.json", json.dumps({**manifest, "main": "i.js"}))
    shared_interpreter.files.write("/tmp/own/i.js", "module.exports = { kind: 'commonjs' }")
    esm = {**manifest, "name": "esm", "type": "module", "exports": "./i.js"}
    shared_interpreter.files.write("/tmp/esm/package.json", json.dumps(esm))
    shared_interpreter.files.write("/tmp/esm/i.js", "export const kind = 'module'")
    shared_interpreter.commands.run("npm install --offline --install-links /tmp/own /tmp/esm", cwd="/tmp/js")
    assert value(js("require('mine').kind")) == "commonjs"
    assert value(js("import mine from 'mine'; mine.kind")) == "commonjs"
    assert value(js("import { kind } from 'esm'; kind")) == "module"
    assert value(js("(await import('mine')).default.kind")) == "commonjs"


def test_the_last_value_of_a_cell_is_its_text_every_time(js: Run) -> None:
    """The kernel publishes a value beside the end of the cell, now and then after it."""
    values = [value(js(f"require('path').basename('/a/{n}')")) for n in range(40)]
    assert values == [str(n) for n in range(40)]
    assert value(js("await Promise.resolve(7)")) == "7"
    assert js("let nothing = 1").results == []


def test_errors_and_values_have_no_colours(js: Run) -> None:
    thrown = js("function f() { throw new TypeError('bad') }\nf()")
    assert (thrown.error.name, thrown.error.value) == ("TypeError", "bad")
    shown = js("console.log({ a: 'x', b: [1, null] }); ({ a: 'x', b: true })")
    assert shown.text == '{ a: "x", b: true }'
    assert "\x1b" not in thrown.error.traceback + "".join(shown.logs.stdout)


def test_code_that_cannot_be_parsed_is_an_error(js: Run) -> None:
    assert js("const a =;").error.name == "SyntaxError"
    assert value(js("1 + 1")) == "2"


def test_typescript_has_it_all_too(shared_interpreter: Sandbox) -> None:
    code = "interface P { name: string }\nconst p: P = { name: require('path').basename('/a/b') }\np.name"
    assert value(shared_interpreter.run_code(code, language="ts")) == "b"


def test_a_kernel_that_ended_has_all_of_it_again(js: Run) -> None:
    assert js("globalThis.kept = 1; process.exit(3)").error.name == "KernelDied"
    again = js("typeof kept + ' ' + typeof require")
    assert value(again) == "undefined function"
    assert "variables of earlier cells are lost" in "".join(again.logs.stderr)
