"""Runs the benchmarks: `python benchmarks/run.py [--quick] [--only NAME …] [--no-readme]`. `make bench` calls it.

Starts a server of its own on the templates that `make demo` builds, measures each scenario in turns with its floor,
writes the raw rows and the machine's facts to `benchmarks/results/` and the table into the README.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import floors
import machine
import render
from measure import Row, summarise
from scenarios import SCENARIOS, Bench
from server import BenchServer, find_template, serving, templates_dir

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    arguments = _arguments()
    base = find_template("base")
    if base is None:
        print(f"the template 'base' is not built in {templates_dir()}: run `make demo` first", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("the floors mount the templates and read other processes' memory: run as root", file=sys.stderr)
        return 2
    facts = machine.facts()
    began = time.monotonic()
    rows: list[Row] = []
    failed: list[str] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving(arguments.isolation))
        _point_the_sdk_at(server)
        bench = _bench(stack, server, arguments.isolation, arguments.quick)
        for name in arguments.only or SCENARIOS:
            print(f"{name} …", file=sys.stderr, flush=True)
            try:
                found = SCENARIOS[name](bench)
            except Exception:  # the others' figures are worth as much without it
                traceback.print_exc()
                failed.append(name)
                continue
            rows += found
            for line in summarise(found):
                print(f"  {line.benchmark:45} {line.subject:36} p50 {line.p50:9.3f}  p95 {line.p95:9.3f} {line.unit}")
    facts["load_after"] = round(os.getloadavg()[0], 2)
    facts["seconds"] = round(time.monotonic() - began)
    if failed:
        facts["failed"] = failed
        print(f"these gave no figures: {', '.join(failed)}", file=sys.stderr)
    text = render.table(facts, rows)
    print("\n" + text)
    if arguments.quick or arguments.only:
        print("\n(a partial run: results and README are left as they are)", file=sys.stderr)
        return 1 if failed else 0
    render.write(ROOT / "benchmarks" / "results", facts, rows)
    if not arguments.no_readme and not render.into_readme(ROOT / "README.md", text):
        print("README.md has no benchmark markers: the table was not put there", file=sys.stderr)
    if not arguments.no_readme:
        render.into_readme(ROOT / "benchmarks" / "README.md", render.breakdown(rows), "breakdown")
    return 1 if failed else 0


def _bench(stack: contextlib.ExitStack, server: BenchServer, isolation: str, quick: bool) -> Bench:
    base, code = find_template("base"), find_template("code-interpreter-v1")
    assert base is not None
    # Not in the server's data directory: the floors must be alike in file system, not in fate.
    work = Path(tempfile.mkdtemp(prefix="bench-floors-", dir=templates_dir().parent))
    stack.callback(shutil.rmtree, work, ignore_errors=True)
    root = stack.enter_context(floors.template_root(base.layers, work / "base"))
    raw_jupyter = None
    if code is None:
        print("the template 'code-interpreter-v1' is not built: run_code is left out", file=sys.stderr)
    else:
        code_root = stack.enter_context(floors.template_root(code.layers, work / "code"))
        raw_jupyter = stack.enter_context(floors.jupyter(code_root))
    return Bench(
        server=server,
        isolation=isolation,
        work=work,
        bwrap=floors.Bwrap(root),
        bash=floors.PlainBash(floors.skeleton_home(root, work)),
        answers_only=stack.enter_context(floors.answers_only()),
        floor_files=stack.enter_context(floors.file_server(work / "files")),
        floor_jupyter=raw_jupyter,
        rounds=(lambda n: max(1, n // 10)) if quick else (lambda n: n),
    )


def _point_the_sdk_at(server: BenchServer) -> None:
    os.environ.update(E2B_API_KEY=server.api_key, E2B_API_URL=server.url, E2B_SANDBOX_URL=server.url)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds; writes nothing")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), help="these scenarios; writes nothing")
    parser.add_argument("--isolation", default="auto", help="the tier to measure")
    parser.add_argument("--no-readme", action="store_true", help="leave the README's table alone")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
