"""The `atoll` command: words, options and exit codes. The work is in the modules beside this one, imported when needed.

Exit codes: 0 done; 1 it did not work, with the reason on standard error; 2 wrong usage; `atoll run`: the code's own.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from atoll.cli import service_words, upkeep
from atoll.cli.cluster import app as nodes_app
from atoll.cli.everyday import register
from atoll.cli.words import AsJson, DataDir, errors_printed, print_json, settings_of
from atoll.config import Settings, warm_wishes

app = typer.Typer(
    name="atoll",
    help="Sandboxes for AI agents on your own Linux machine, speaking E2B's protocol.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
template_app = typer.Typer(help="Build and list templates.", no_args_is_help=True)
app.add_typer(template_app, name="template")
team_app = typer.Typer(help="Make teams and API keys; one team never sees another's sandboxes.", no_args_is_help=True)
app.add_typer(team_app, name="team")
branch_app = typer.Typer(help="Checkpoints of agents' runs: go on from any of them.", no_args_is_help=True)
app.add_typer(branch_app, name="branch")
node_app = typer.Typer(help="Nodes on other machines: their certificates, and the node itself.", no_args_is_help=True)
app.add_typer(node_app, name="node")
app.add_typer(service_words.app, name="service")
audit_app = typer.Typer(help="What API keys did: a log that cannot be changed unnoticed.", no_args_is_help=True)
app.add_typer(audit_app, name="audit")
app.add_typer(nodes_app, name="nodes")

CheckpointId = Annotated[str, typer.Argument(help="Its id, or the beginning of it.")]


def main() -> None:
    """The entry point of the installed command."""
    app()


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0 takes a free one. [default: 3000]")
    ] = None,
    data_dir: DataDir = None,
    isolation: Annotated[str | None, typer.Option(help="auto, or the name of a tier. [default: auto]")] = None,
    domain: Annotated[
        str | None,
        typer.Option(help="Also route {port}-{id}.DOMAIN[:PORT]; wildcard DNS must point here. PORT is for TLS."),
    ] = None,
    tls: Annotated[
        str | None,
        typer.Option(help="auto: the domain also over TLS, by a CA that Atoll makes. [default: off]"),
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(help="The domain over TLS with this certificate (PEM) for DOMAIN and *.DOMAIN.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM).")] = None,
    keep_sandboxes: Annotated[
        bool | None,
        typer.Option("--keep-sandboxes/--end-sandboxes", help="On a clean stop, leave sandboxes to the next server."),
    ] = None,
    registry_allow_private: Annotated[
        list[str] | None,
        typer.Option(help="A private network (10.1.0.0/16) whose registries template builds may reach."),
    ] = None,
    insecure_registry: Annotated[
        list[str] | None, typer.Option(help="A registry (HOST[:PORT]) that is spoken to without TLS.")
    ] = None,
    ensure: Annotated[list[str] | None, typer.Option(help="Build this template first if it is missing.")] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="ID=HOST:PORT of a node on another machine; may be given more than once.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="ray://HOST:PORT: every machine of that Ray cluster is a node; or local.")
    ] = None,
    warm: Annotated[
        list[str] | None,
        typer.Option(metavar="TEMPLATE=N", help="Keep N started sandboxes of this template for the creates to come."),
    ] = None,
    ready_fd: Annotated[
        int | None, typer.Option(min=0, help='Write {"url", "api_key"} to this descriptor when ready.')
    ] = None,
    lifeline_fd: Annotated[
        int | None, typer.Option(min=0, help="Stop, and end all sandboxes, when this descriptor reaches its end.")
    ] = None,
) -> None:
    """Run the server: control plane, edge and sandboxes in one process."""
    with errors_printed():
        settings = settings_of(data_dir)
        given: dict[str, Any] = {
            "host": host,
            "port": port,
            "isolation": isolation,
            "domain": domain,
            "tls": tls,
            "tls_cert": tls_cert,
            "tls_key": tls_key,
            "keep_sandboxes": keep_sandboxes,
            "registry_allow_private": tuple(registry_allow_private) if registry_allow_private else None,
            "insecure_registries": tuple(insecure_registry) if insecure_registry else None,
            "cluster": cluster,
            "nodes": tuple(node) if node else None,
            "warm": warm_wishes(warm) if warm else None,
        }
        if lifeline_fd is not None and keep_sandboxes is None:
            given["keep_sandboxes"] = False
        settings = replace(settings, **{name: value for name, value in given.items() if value is not None})
        for name in ensure or ():
            _build(settings, name)
        from atoll.server import launcher as server

        server.serve(settings, server.Wires(ready_fd, lifeline_fd))


@app.command()
def env(
    by_domain: Annotated[
        bool,
        typer.Option("--domain", help="By domain over TLS (E2B_DOMAIN), for clients without E2B_SANDBOX_URL."),
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Print the export lines that point E2B's SDKs at the running server: eval "$(atoll env)"."""
    with errors_printed():
        from atoll.cli.environment import client_environ, export_lines

        environ = client_environ(settings_of(data_dir), by_domain=by_domain)
        print_json(dict(environ)) if as_json else typer.echo(export_lines(environ))


@template_app.command("build")
def template_build(
    names: Annotated[list[str] | None, typer.Argument(help="Templates to build. [default: base]")] = None,
    data_dir: DataDir = None,
) -> None:
    """Build built-in templates that are missing or whose recipe changed."""
    with errors_printed():
        settings = settings_of(data_dir)
        for name in names or ["base"]:
            _build(settings, name)


@template_app.command("import")
def template_import(
    source: Annotated[
        Path,
        typer.Argument(exists=True, help="What `docker save` wrote, an OCI archive, or an OCI layout."),
    ],
    name: Annotated[str, typer.Option(help="The template's name, with a tag if you like (NAME:TAG).")],
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a template of an image on this disk, by the server of the data directory."""
    with errors_printed():
        from rich.console import Console

        from atoll.cli import template_import as importing

        made = importing.import_image(settings_of(data_dir), source, name, Console(stderr=True))
        _print_facts(made, as_json)


@template_app.command("list")
def template_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the templates that a sandbox can be made of."""
    with errors_printed():
        from atoll.cli import templates

        settings = settings_of(data_dir)
        rows = templates.rows(settings.templates_dir)
        print_json(rows) if as_json else templates.print_table(rows)


@node_app.command("certificate")
def node_certificate(
    hosts: Annotated[list[str], typer.Argument(help="Names or addresses under which the control plane reaches it.")],
    to: Annotated[Path | None, typer.Option("--to", help="File to write. [default: HOST.pem]")] = None,
    days: Annotated[int, typer.Option(min=1, max=3650, help="How long it is good for.")] = 365,
    data_dir: DataDir = None,
) -> None:
    """On the control plane's machine: make the key and certificate of a node, to be copied there."""
    with errors_printed():
        from atoll.cli import nodes

        target = to or Path(f"{hosts[0].replace('/', '_')}.pem")
        nodes.write_certificate(settings_of(data_dir), hosts, days, target)
        typer.echo(f"{target}: copy it to the node, where `atoll node serve --certificate` takes it")


@node_app.command("serve")
def node_serve(
    node_id: Annotated[str, typer.Option("--id", help="What the control plane calls it.")],
    certificate: Annotated[Path, typer.Option(help="What `atoll node certificate` made for it.")],
    listen: Annotated[str, typer.Option(help="HOST:PORT; port 0 takes a free one.")] = "0.0.0.0:7443",
    data_dir: DataDir = None,
    isolation: Annotated[str | None, typer.Option(help="auto, or the name of a tier. [default: auto]")] = None,
    keep_sandboxes: Annotated[
        bool | None,
        typer.Option("--keep-sandboxes/--end-sandboxes", help="On a clean stop, leave sandboxes to the next one."),
    ] = None,
    ready_fd: Annotated[
        int | None, typer.Option(min=0, help='Write {"node", "host", "port"} to this descriptor when ready.')
    ] = None,
) -> None:
    """Run a node alone, for a control plane on another machine (its `--node`)."""
    with errors_printed():
        from atoll.cli import nodes
        from atoll.server import launcher as server

        given = {"isolation": isolation, "keep_sandboxes": keep_sandboxes}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        settings = replace(settings_of(data_dir), **chosen)
        server.serve_node(settings, nodes.agent(node_id, listen, certificate), server.Wires(ready_fd, None))


@team_app.command("create")
def team_create(name: str, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Make a team and its first API key, which is shown this once."""
    with errors_printed():
        from atoll.cli import teams

        _print_facts(teams.create(settings_of(data_dir), name), as_json)


@team_app.command("key")
def team_key(
    team: Annotated[str, typer.Argument(help="The team's id or name.")],
    name: Annotated[str, typer.Option(help="What to call the key.")] = "key",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a further API key of a team, which is shown this once."""
    with errors_printed():
        from atoll.cli import teams

        _print_facts(teams.add_key(settings_of(data_dir), team, name), as_json)


@team_app.command("list")
def team_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """List the teams."""
    with errors_printed():
        from atoll.cli import teams

        found = teams.rows(settings_of(data_dir))
        if as_json:
            print_json(found)
        for row in () if as_json else found:
            typer.echo(f"{row['team_id']}  {row['name']}  ({row['keys']} keys)")


@branch_app.command("list")
def branch_list(data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show the tree of checkpoints."""
    with errors_printed():
        from atoll.cli import branch

        branch.show_all(settings_of(data_dir), as_json=as_json)


@branch_app.command("show")
def branch_show(checkpoint: CheckpointId, data_dir: DataDir = None, as_json: AsJson = False) -> None:
    """Show a checkpoint and all that led to it."""
    with errors_printed():
        from atoll.cli import branch

        branch.show(settings_of(data_dir), checkpoint, as_json=as_json)


@branch_app.command("run")
def branch_run(
    checkpoint: CheckpointId,
    command: Annotated[str, typer.Argument(help="A shell command line.")],
    note: Annotated[str, typer.Option(help="What to call what comes of it. [default: the command]")] = "",
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Go on from a checkpoint with another action, and take the next one there; returns the command's exit code."""
    with errors_printed():
        from atoll.cli import branch

        raise typer.Exit(branch.go_on(settings_of(data_dir), checkpoint, command, note, as_json=as_json))


@branch_app.command("delete")
def branch_delete(checkpoint: CheckpointId, data_dir: DataDir = None) -> None:
    """Delete a checkpoint at which no other began, and its snapshot."""
    with errors_printed():
        from atoll.cli import branch

        branch.delete(settings_of(data_dir), checkpoint)


@audit_app.command("export")
def audit_export(
    since: Annotated[str, typer.Option(help="An ISO time, or its beginning (2026-11-27).")] = "",
    team: Annotated[str, typer.Option(help="Only of this team's id.")] = "",
    sandbox: Annotated[str, typer.Option(help="Only about this sandbox's id.")] = "",
    data_dir: DataDir = None,
) -> None:
    """Print the entries, oldest first, one JSON object a line."""
    with errors_printed():
        from atoll.cli import audit

        for entry in audit.export(settings_of(data_dir), since=since, team=team, sandbox=sandbox):
            typer.echo(json.dumps(entry, ensure_ascii=False))


@audit_app.command("verify")
def audit_verify(
    head: Annotated[str | None, typer.Option(help="The hash that an earlier `verify` printed: must be in it.")] = None,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Check that no entry was changed, left out or put in between; exit code 1, and which, if one was."""
    with errors_printed():
        from atoll.cli import audit

        _print_facts(audit.verify(settings_of(data_dir), head), as_json)


@app.command()
def doctor(
    data_dir: DataDir = None,
    as_json: AsJson = False,
    fix: Annotated[bool, typer.Option("--fix", help="Fetch what is missing into the data directory first.")] = False,
    attack: Annotated[
        bool, typer.Option("--attack", help="Attack sandboxes of this machine and show how it ended.")
    ] = False,
    family: Annotated[str, typer.Option(help="With --attack: only this family of attempts.")] = "",
) -> None:
    """Check what this machine can do and say what to do about the rest."""
    with errors_printed():
        from atoll.cli import doctor as checks

        if attack:
            from atoll.cli.attack import attack as attack_suite

            raise typer.Exit(attack_suite(settings_of(data_dir), family, as_json=as_json))

        if fix:
            for line in checks.mend(settings_of(data_dir)):
                typer.echo(line, err=True)
        report = checks.examine(settings_of(data_dir))
        print_json(report.as_json()) if as_json else checks.print_report(report)
        raise typer.Exit(0 if report.usable else 1)


@app.command()
def run(
    code: Annotated[str, typer.Argument(help="A shell command line, or Python with --python; - reads it from stdin.")],
    python: Annotated[bool, typer.Option("--python", help="Run it in the code interpreter.")] = False,
    template: Annotated[str | None, typer.Option(help="Template to use.")] = None,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds after which it is ended.")] = 300.0,
    data_dir: DataDir = None,
) -> None:
    """Run one thing in a throw-away sandbox; returns its exit code."""
    with errors_printed():
        from atoll.cli import run as runs

        text = sys.stdin.read() if code == "-" else code
        raise typer.Exit(runs.run(settings_of(data_dir), text, python=python, template=template, timeout_s=timeout))


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="A recorded agent run (JSON).")],
    template: Annotated[str | None, typer.Option(help="Template to use. [default: what the run needs]")] = None,
    soft_timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Leave a command running after so many seconds without output.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Hard limit per action, in seconds.")] = None,
    fetch: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Afterwards fetch this port from outside the sandbox.")
    ] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="Use a platform of its own in any case.")] = False,
    branch_from: Annotated[
        int | None, typer.Option("--from", min=0, help="With --branch: the number of the event to branch before.")
    ] = None,
    branch: Annotated[
        bool, typer.Option("--branch", help="Take a checkpoint at --from, and go on in a sandbox of it.")
    ] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Replay a recorded agent run in a sandbox, action by action."""
    if branch != (branch_from is not None):
        raise typer.BadParameter("--from N and --branch belong together")
    with errors_printed():
        from atoll.cli.replay import Options, replay_file

        options = Options(template, soft_timeout, timeout, fetch, embedded, as_json, branch_from)
        raise typer.Exit(replay_file(settings_of(data_dir), file, options))


@app.command()
def agent(
    task: Annotated[str | None, typer.Argument(help="What is to be done, in words.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="Name of the model, as its endpoint calls it.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="An OpenAI-compatible endpoint. [default: OPENAI_BASE_URL]")
    ] = None,
    session: Annotated[Path | None, typer.Option(help="Log of events. [default: in the data directory]")] = None,
    resume: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Go on with this session; a task is a new message.")
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="Do a recorded run again and compare observations.")
    ] = None,
    template: Annotated[str | None, typer.Option(help="Template to use. [default: base]")] = None,
    jupyter: Annotated[bool, typer.Option("--jupyter", help="Offer a Jupyter kernel.")] = False,
    max_steps: Annotated[int, typer.Option(min=1, help="Actions over the whole session.")] = 100,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Tokens over the whole session.")] = None,
    budget: Annotated[float | None, typer.Option(min=0, help="Money over the whole session; needs prices.")] = None,
    price_in: Annotated[float, typer.Option(min=0, help="Price of a million tokens sent.")] = 0.0,
    price_out: Annotated[float, typer.Option(min=0, help="Price of a million tokens got.")] = 0.0,
    soft_timeout: Annotated[
        float | None, typer.Option(min=0.1, help="Leave a command running after so many seconds without output.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.1, help="Replay: hard limit per action, in seconds.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the sandbox also when the work is finished.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Let a model work in a sandbox, or compare a recorded run with what happens now."""
    with errors_printed():
        from atoll.agent import Budget
        from atoll.cli import agent as agents

        try:
            limits = Budget(max_tokens, budget, price_in, price_out)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error
        options = agents.Options(
            task=task,
            model=model,
            base_url=base_url,
            session=session,
            resume=resume,
            replay=replay,
            template=template,
            jupyter=jupyter,
            steps=max_steps,
            budget=limits,
            soft_timeout_s=soft_timeout,
            timeout_s=timeout,
            keep=keep,
            as_json=as_json,
        )
        raise typer.Exit(agents.agent(settings_of(data_dir), options))


@app.command()
def stress(
    scenarios: Annotated[
        list[str] | None, typer.Argument(help="Which ones. [default: all]", show_default=False)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller sizes: under three minutes.")] = False,
    at_once: Annotated[int | None, typer.Option(min=1, max=1000, help="Runtimes at once. [default: 64]")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Jobs of all runtimes together. [default: 300]")] = None,
    threshold: Annotated[
        list[str] | None, typer.Option(help="scenario.figure>=number or <=number; may be given more than once.")
    ] = None,
    thresholds: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="A file with one threshold a line.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML to write. [default: atoll-stress.html]")] = None,
    json_file: Annotated[Path | None, typer.Option("--json-file", help="JSON to write.")] = None,
    template: Annotated[str | None, typer.Option(help="Of the sandboxes. [default: base]")] = None,
    embedded: Annotated[bool, typer.Option("--embedded", help="Use a platform of its own in any case.")] = False,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Put the agent runtime under stress and compare with thresholds."""
    with errors_printed():
        from atoll.cli import stress as stresses

        options = stresses.Options(
            scenarios=scenarios or (),
            quick=quick,
            at_once=at_once,
            jobs=jobs,
            thresholds=threshold or (),
            thresholds_file=thresholds,
            report=report,
            json_file=json_file,
            template=template,
            embedded=embedded,
            as_json=as_json,
        )
        raise typer.Exit(stresses.stress(settings_of(data_dir), options))


@app.command()
def connections(
    sandbox_id: Annotated[str, typer.Argument(help="The sandbox.")],
    denied: Annotated[bool, typer.Option("--denied", help="Only what was not let through.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=2000, help="The newest so many.")] = 100,
    data_dir: DataDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what a sandbox reached or tried to: connections and DNS questions."""
    with errors_printed():
        from atoll.cli import connections as records

        rows = records.fetch(settings_of(data_dir), sandbox_id, denied=denied, limit=limit)
        print_json(rows) if as_json else records.print_table(rows)


register(app)
upkeep.register(app)


@app.command()
def version() -> None:
    """Print the version."""
    from atoll import __version__

    typer.echo(__version__)


def _version(is_asked: bool) -> None:
    if is_asked:
        version()
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """What may stand before a command."""


def _build(settings: Settings, name: str) -> None:
    from atoll.cli import templates

    templates.build(settings.templates_dir, name)


def _print_facts(facts: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(dict(facts))
    for name, value in () if as_json else facts.items():
        typer.echo(f"{name}={value}")


if __name__ == "__main__":
    main()
