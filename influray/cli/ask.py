"""The verbs that ask a finished run: index, query, shots, audit, mixture, serve."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from influray.cli.options import Address, AllowPlugins, RunPath
from influray.cli.printing import err, out, print_tables
from influray.protocols import ConfigError


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(index)
    app.command()(query)
    app.command()(shots)
    app.command()(audit)
    app.command()(mixture)
    app.command()(serve)


def index(
    run: RunPath,
    kind: Annotated[
        str, typer.Option("--kind", help="auto, exact, flat, ivf, or what faiss' index_factory takes: IVF4096,PQ64.")
    ] = "auto",
    address: Address = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Build the index by which a large pool answers queries."""
    from influray import pipeline

    made = pipeline.index(run, kind, address=address, console=err)
    recall, size = made["recall"], sum(part["bytes"] for part in made["parts"])
    found = "exact" if recall is None else f"recall@{recall['k']} {recall['value']:.3f}"
    out.print(escape(f"index: {made['kind']} ({made['reason']}), {found}, {size / 2**20:.1f} MiB"))


def query(
    run: RunPath,
    question: Annotated[str, typer.Argument(metavar="QUESTION", help="The prompt.")] = "",
    answer: Annotated[str, typer.Option("--answer", help="The answer that is wanted.")] = "",
    system: Annotated[str, typer.Option("--system", help="A system turn before it.")] = "",
    messages: Annotated[
        Path | None, typer.Option("--messages", help="A JSON file with one record, in place of question and answer.")
    ] = None,
    like: Annotated[
        str, typer.Option("--like", help="Id of a target, or of a pool row, whose stored vector asks instead.")
    ] = "",
    k: Annotated[int, typer.Option("-k", help="How many rows at each end.")] = 20,
    tokens: Annotated[bool, typer.Option("--tokens", help="Which tokens of the answer carry the influence.")] = False,
    numbers: Annotated[str | None, typer.Option("--json", help="Write the answer as JSON; - prints it.")] = None,
    parquet: Annotated[Path | None, typer.Option("--parquet", help="Write the rows as Parquet.")] = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Show which pool rows would help or harm the answer to a question most."""
    from influray.report.query_sheet import query_note, query_tables
    from influray.report.sheet import check_output_path
    from influray.runs import open_run
    from influray.store.artifact import write_json

    wanted = {"--json": numbers if numbers != "-" else None, "--parquet": parquet}
    files = {key: check_output_path(path, key) for key, path in wanted.items() if path is not None}
    try:
        record = b"" if messages is None else messages.read_bytes()
    except OSError as error:
        raise ConfigError(f"--messages: {messages}: the file cannot be read: {error}") from error
    _quiet()
    found = open_run(run).query(question, answer, k, system=system, messages=record, like=like, tokens=tokens)
    plain = found.as_plain()
    if "--parquet" in files:
        import pyarrow.parquet as pq

        pq.write_table(found.as_table(), files["--parquet"])
    if numbers == "-":
        typer.echo(json.dumps(plain))
        return
    print_tables(query_tables(plain, out.width), [])
    out.print(escape(query_note(plain)))
    if numbers is not None:
        write_json(files["--json"], plain)
    for path in files.values():
        out.print(f"answer: {escape(str(path))}")


def shots(
    run: RunPath,
    question: Annotated[str, typer.Option("--question", help="What the prompt ends with.")] = "",
    answer: Annotated[str, typer.Option("--answer", help="The answer that is wanted: it chooses.")] = "",
    task: Annotated[str, typer.Option("--task", help="Where no answer is known: its targets choose.")] = "",
    system: Annotated[str, typer.Option("--system", help="A system turn before it all.")] = "",
    like: Annotated[str, typer.Option("--like", help="Id of a target or pool row, in place of a question.")] = "",
    k: Annotated[int, typer.Option("-k", help="How many shots.")] = 8,
    method: Annotated[str, typer.Option("--method", help="influence, coverage or dpp.")] = "influence",
    selection: Annotated[str, typer.Option("--from", help="Only rows of this selection; default: the pool.")] = "",
    max_tokens: Annotated[int | None, typer.Option("--max-tokens", help="Most tokens of the whole prompt.")] = None,
    reverse: Annotated[bool, typer.Option("--reverse", help="Most influence first, not next to the question.")] = False,
    candidates: Annotated[int, typer.Option("--candidates", help="Rows of most influence to choose among.")] = 100,
    diversity: Annotated[float, typer.Option("--diversity", help="Of dpp: larger asks for less alike shots.")] = 1.0,
    numbers: Annotated[str | None, typer.Option("--json", help="Write it all as JSON; - prints it.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write the prompt: its messages to a .json, else its text.")
    ] = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Choose demonstrations for a question from the pool, as a few-shot prompt."""
    from influray.report.query_sheet import shots_table
    from influray.report.sheet import check_output_path
    from influray.runs import open_run
    from influray.store.artifact import write_bytes, write_json

    plain = None if numbers is None or numbers == "-" else check_output_path(numbers, "--json")
    prompt = None if output is None else check_output_path(output, "--output")
    _quiet()
    given = {"system": system, "like": like, "task": task, "method": method, "selection": selection}
    limits = {"max_tokens": max_tokens, "reverse": reverse, "candidates": candidates, "diversity": diversity}
    found = open_run(run).shots(question, answer, k, **given, **limits)
    if numbers == "-":
        typer.echo(json.dumps(found.as_plain()))
    else:
        print_tables([shots_table(found.as_plain(), out.width)], [])
        out.print(escape(found.text))
    for note in (f"{found.tokens} tokens", *found.notes):
        err.print(escape(note))
    if prompt is not None:
        tools = {"tools": found.tools} if found.tools else {}
        whole = json.dumps({"messages": found.messages, **tools}, ensure_ascii=False, indent=2) + "\n"
        write_bytes(prompt, (whole if prompt.suffix.lower() == ".json" else found.text).encode())
        err.print(f"prompt: {escape(str(prompt))}")
    if plain is not None:
        write_json(plain, found.as_plain())
        err.print(f"numbers: {escape(str(plain))}")


def audit(
    run: RunPath,
    numbers: Annotated[str | None, typer.Option("--json", help="Write what was found as JSON; - prints it.")] = None,
    exclude: Annotated[
        Path | None, typer.Option("--exclude", help="Write the ids of harmful, repeated and contaminated rows.")
    ] = None,
) -> None:
    """Find harmful, mislabelled-looking, duplicate and contaminated rows, and targets that nothing helps."""
    from influray import pipeline
    from influray.report.audit import audit_path, audit_tables, exclusions
    from influray.report.sheet import check_output_path
    from influray.store.artifact import write_bytes, write_json

    plain = None if numbers is None or numbers == "-" else check_output_path(numbers, "--json")
    listed = None if exclude is None else check_output_path(exclude, "--exclude")
    this, found = pipeline.audit(run)
    told = out
    if numbers == "-":
        typer.echo(json.dumps(found))
        told = err
    else:
        print_tables(audit_tables(found, out.width), [])
    for note in found["notes"]:
        told.print(escape(note))
    told.print(f"audit: {escape(str(audit_path(this.directory)))}")
    if plain is not None:
        write_json(plain, found)
        told.print(f"numbers: {escape(str(plain))}")
    ids, odd = exclusions(found)
    kinds = ", ".join(f"{len(of)} {kind}" for kind, of in found["exclude"].items())
    if listed is None:
        told.print(f"ids for constraints.exclude ({kinds}): add --exclude FILE")
        return
    write_bytes(listed, ids.encode())
    told.print(f"constraints: {{ exclude: {escape(str(listed.resolve()))} }}  # {kinds}")
    if odd:
        told.print(f"{len(odd)} ids hold a line break or nothing, and are not in the file: {escape(repr(odd[:5]))}")


def mixture(
    run: RunPath,
    budget: Annotated[
        int | None, typer.Option("--budget", help="Only the first so many rows of each selection.")
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", help="How often the targets are drawn anew for the intervals; 0: none.")
    ] = 10,
    seed: Annotated[int, typer.Option("--seed", help="Of these draws.")] = 0,
    numbers: Annotated[str | None, typer.Option("--json", help="Write the ratios as JSON; - prints it.")] = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Say in which ratios to mix the sources: as the selections do, and as a lasso of the targets on them does."""
    from influray import pipeline
    from influray.report.sheet import check_output_path
    from influray.store.artifact import write_json

    plain = None if numbers is None or numbers == "-" else check_output_path(numbers, "--json")
    if repeats:
        err.print(f"every selection is made again {repeats} times, by other draws of the targets; --repeats 0 does not")
    found = pipeline.mixture(run, budget, repeats, seed)
    if numbers == "-":
        typer.echo(json.dumps(found.as_plain()))
    else:
        print_tables(found.tables(), [])
    for note in found.notes:
        err.print(escape(note))
    if plain is not None:
        write_json(plain, found.as_plain())
        out.print(f"written: {escape(str(plain))}")


def serve(
    run: RunPath,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; another than this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes one that is free.")] = 8899,
    workers: Annotated[int, typer.Option("--workers", help="Copies of the model that answer queries.")] = 1,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="A file with the token that requests must bring.")
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option("--allow-host", help="A further name that the service is reached by.")
    ] = None,
    allow_plugins: AllowPlugins = False,
) -> None:
    """Serve a run over HTTP: a page to look around in, queries and explanations. Ctrl-C ends it."""
    from influray.ask import serving
    from influray.runs import open_run

    token = "" if token_file is None else serving.read_token(token_file)
    opened = open_run(run)
    place = serving.Place(host, port, tuple(allow_host or ()), token)

    def ready(address: str) -> None:
        out.print(f"serving {escape(opened.directory.address)} at {escape(address)} (Ctrl-C ends it)")

    serving.serve(opened.directory, opened.config, place, workers, on_ready=ready)


def _quiet() -> None:
    """Keep what transformers says while it loads a model out of the answer."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
