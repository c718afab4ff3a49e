"""The verbs to begin with: init writes a config for one's own files, configs shows those that come along."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from influray.cli.printing import out, table
from influray.protocols import ConfigError

NAME = "influray.yaml"
# Files that are called so say nothing of their task, which their folder does.
PARTS = ("few_shot", "fewshot", "few-shot", "train", "dev", "valid", "validation", "target", "targets", "examples")
HELD_OUT = ("test", "held_out", "heldout", "held-out")
SHIPPED = Path(__file__).resolve().parent.parent / "configs"


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    app.command()(init)
    app.command()(configs)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where influray.yaml goes; the run will be DIR/run.")],
    pool: Annotated[
        list[str],
        typer.Option("--pool", help="A file or folder to choose from, or an hf:// id; several times for more."),
    ],
    target: Annotated[
        list[str],
        typer.Option(
            "--target",
            metavar="[NAME=]FILE",
            help="Examples of a task; without a name, the file's, or its folder's for a few_shot.jsonl and the like. "
            "Once for each file.",
        ),
    ],
    test: Annotated[
        list[str] | None, typer.Option("--test", metavar="[NAME=]FILE", help="Held-out examples of a task.")
    ] = None,
    model: Annotated[str, typer.Option("--model", help="The base: a folder or a hub id; default: a small one.")] = "",
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="KEY=NAME", help="What the files call a key, such as prompt=question."),
    ] = None,
) -> None:
    """Write a commented config for your files, and tell what was understood of them."""
    from influray.config import load_config
    from influray.data.survey import words
    from influray.planning.draft import BASE, Files, draft
    from influray.store.artifact import write_bytes

    path = folder / NAME
    if path.exists():
        raise ConfigError(f"init: {path} is there already; name another folder, or delete it")
    targets, tests = _held_out(_tasks(target, "--target"), _tasks(test or [], "--test"))
    files = Files(tuple(pool), targets, tests)
    drafted = draft(files, str(folder.absolute() / "run"), model or BASE, _columns(column or []))
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(path, drafted.text.encode())
    load_config(path)
    for key, found in drafted.found.items():
        out.print(f"[bold]{escape(key)}[/bold]")
        for line in words(found):
            out.print(f"  {escape(line)}")
    for note in drafted.notes:
        out.print(f"[yellow]warning[/yellow]: {escape(note)}")
    where = shlex.quote(str(path))
    out.print()
    out.print(f"wrote {escape(where)}: read it, then")
    for verb, note in (
        ("inspect", " --row 0   # a row as the model sees it"),
        ("plan", "   # what it will take"),
        ("run", "   # all of it; again after any interruption"),
    ):
        out.print(f"  influray {verb} {escape(where)}{note}")


def configs(
    name: Annotated[str, typer.Argument(metavar="[NAME]", help="The one to print, such as bids.")] = "",
) -> None:
    """List the configs that come along, or print one: influray configs bids > bids.yaml."""
    from influray.config_messages import near

    known = {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}
    if not name:
        out.print(table("name", "what it is", rows=[(key, _first_line(path)) for key, path in known.items()]))
        return
    found = known.get(name.removesuffix(".yaml"))
    if found is None:
        raise ConfigError(f"configs: there is none called {name!r}{near(name, known)} (known: {', '.join(known)})")
    typer.echo(found.read_text(encoding="utf-8"), nl=False)


def _first_line(path: Path) -> str:
    """Return what the comment at the head of a config begins with, up to its first colon or full stop."""
    first = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
    return re.split(r": |\. (?!A\))|\.$", first, maxsplit=1)[0]


def _tasks(given: Sequence[str], option: str) -> dict[str, tuple[str, ...]]:
    """Return task -> its files, of texts NAME=FILE; without NAME, of the file's own name, or its folder's."""
    found: dict[str, tuple[str, ...]] = {}
    folders: dict[str, str] = {}  # of tasks that are named after a file
    for text in given:
        name, mark, file = text.partition("=")
        if not mark or "/" in name:
            path, file = Path(os.path.abspath(text)), text
            name = path.name.split(".", 1)[0]
            folder = str(path.parent)
            if name.casefold() in (*PARTS, *HELD_OUT) and path.parent.name:
                name = path.parent.name
            if folders.setdefault(name, folder) != folder:
                raise ConfigError(
                    f"{option}: {found[name][0]} and {text} would both be the task {name!r}; say which is which, or "
                    f"that they are one: {option} NAME={text}"
                )
        if not file:
            raise ConfigError(f"{option}: found {text!r}, expected NAME=FILE, such as math=targets/math.jsonl")
        found[name] = (*found.get(name, ()), file)
    return found


def _held_out(
    targets: Mapping[str, tuple[str, ...]], tests: Mapping[str, tuple[str, ...]]
) -> tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]]:
    """Return targets and tests where a file called test in the folder of a target is that task's test."""
    from influray.data.entries import entry_files

    examples, held_out = dict(targets), dict(tests)
    for name, entries in targets.items():
        if len(entries) != 1 or not Path(entries[0]).is_dir():
            continue
        paths = [file.path for file in entry_files(entries, Path.cwd(), "--target")]
        test = tuple(path for path in paths if Path(path).name.split(".", 1)[0].casefold() in HELD_OUT)
        rest = tuple(path for path in paths if path not in test)
        if test and rest:
            examples[name] = rest
            held_out.setdefault(name, test)
    return examples, held_out


def _columns(given: Sequence[str]) -> Mapping[str, str]:
    pairs = [text.partition("=") for text in given]
    if odd := [text for text, (key, _, name) in zip(given, pairs, strict=True) if not key or not name]:
        raise ConfigError(f"--column: found {odd[0]!r}, expected KEY=NAME, such as prompt=question")
    return {key: name for key, _, name in pairs}
