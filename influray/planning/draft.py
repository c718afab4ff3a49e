"""A config for a user's own files, drafted from what they hold, with a comment beside what is worth a thought."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from influray.config_data import ColumnsConfig
from influray.data.entries import entry_files, in_pool
from influray.data.files import DataFile
from influray.data.hub import PREFIX
from influray.data.survey import Survey, survey
from influray.formatting import visible
from influray.protocols import ConfigError
from influray.steps.subject import context_length
from influray.store.uri import is_uri

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"  # a laptop trains it
TEMPLATE = "draft.yaml.j2"
WARMUP_ROWS, WARMUP_STEPS = 1_000, 50  # at least, where the pool has them: Adam's moments need steps
LENGTHS = (512, 1024, 2048, 4096, 8192)
BATCHES = (128, 64, 32, 16, 8, 4, 2, 1)
CHARACTERS = 3.0  # of a token, at least, in most languages and code; where no tokenizer is at hand
TURN_TOKENS = 8  # of a role header and its end, in the templates of today
LEAST_ROWS = 100  # of a selection
ENOUGH_TARGETS = 100  # of a task: each takes a row of gradients, and a column of the matrix
NAMES_SHOWN = 4


@dataclass(frozen=True)
class Files:
    """The entries of the pool, and of each task those for gradients and those held out."""

    pool: tuple[str, ...]
    targets: Mapping[str, tuple[str, ...]]
    tests: Mapping[str, tuple[str, ...]]

    @property
    def all(self) -> list[str]:
        return [*self.pool, *(file for kind in (self.targets, self.tests) for files in kind.values() for file in files)]


@dataclass(frozen=True)
class Draft:
    """The text of a config, what its files were found to hold, by the key that names them, and what is odd in them."""

    text: str
    found: Mapping[str, Survey]
    notes: tuple[str, ...]


def draft(files: Files, run_dir: str, base: str = BASE, columns: Mapping[str, str] | None = None) -> Draft:
    """Return a config for these files. Relative ones start at the working directory.

    Raises:
        ConfigError: a held-out file of a task that has no other; a split without a usable row; columns that do not fit;
            a base that is a path, and no folder is there.
        DataError: a file that is not there or of a kind that is not read.
    """
    if lonely := sorted(set(files.tests) - set(files.targets)):
        raise ConfigError(f"--test: the task {lonely[0]!r} has no --target (known: {', '.join(files.targets)})")
    if unknown := sorted(set(columns or {}) - set(ColumnsConfig.model_fields)):
        raise ConfigError(f"--column: no key is called {unknown[0]!r} (known: {', '.join(ColumnsConfig.model_fields)})")
    if base.startswith((".", "/", "~")) and not Path(base).expanduser().is_dir():
        raise ConfigError(f"--model: there is no folder {base}; name one with config.json and weights, or a hub id")
    mapped = ColumnsConfig.model_validate(dict(columns or {}))
    named = {"data.pool": files.pool}
    for name, entries in files.targets.items():
        named[f"data.targets.{name}"] = entries
        if name in files.tests:
            named[f"data.targets.{name}.test"] = files.tests[name]
    # All are looked for before any is read, which takes a while.
    read = {key: entry_files(entries, Path.cwd(), key, mapped) for key, entries in named.items()}
    found = {key: _look(data_files, key) for key, data_files in read.items()}
    environment = Environment(  # noqa: S701 - it writes YAML, of texts that are quoted
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters["q"] = _quoted
    columns = {name: key for name, key in mapped.model_dump(mode="json").items() if key}
    values: dict[str, Any] = {
        "enough": ENOUGH_TARGETS,
        "run_dir": run_dir,
        "base": base,
        "columns": _quoted(columns) if columns else "",
    }
    values |= {**_settings(found), **_places(files, found)}
    values |= _lengths(found, Path(base).expanduser(), float(values["budget"]))
    return Draft(environment.get_template(TEMPLATE).render(values), found, tuple(_shared(read)))


def _shared(read: Mapping[str, Sequence[DataFile]]) -> Iterator[str]:
    """Yield what is to be said of files that stand in two places."""
    for key, files in read.items():
        both = in_pool(read["data.pool"], files) if key != "data.pool" else []
        if both:
            more = f" and {len(both) - 1} more" if len(both) > 1 else ""
            yield (
                f"the pool holds {both[0].path}{more} of {key}: its rows would be chosen for themselves; name entries "
                "of the pool that do not hold it"
            )


def _look(files: Sequence[DataFile], key: str) -> Survey:
    found = survey(files)
    if not found.usable:
        why = f"; {found.shown[0]}" if found.shown else ""
        raise ConfigError(
            f"{key}: {', '.join(file.path for file in files)}: none of {found.rows:,} rows can be read{why}"
        )
    return found


def _settings(found: Mapping[str, Survey]) -> dict[str, Any]:
    """Return the numbers that depend on how many rows there are and how long they are."""
    rows = found["data.pool"].usable
    fraction = 1.0 if rows <= WARMUP_ROWS else max(0.05, round(WARMUP_ROWS / rows, 2))
    seen = 4 * rows * fraction  # in four epochs
    batch = next((size for size in BATCHES if seen / size >= WARMUP_STEPS), 1)
    budget = min(1.0, max(0.05, round(LEAST_ROWS / rows, 2)))
    worst = max(one.bad / one.rows for one in found.values())
    return {
        "fraction": fraction,
        "batch_size": batch,
        "warmup_steps": round(seen / batch),
        "budget": f"{budget:g}",
        "tune_steps": max(20, round(2 * rows * budget / 8)),
        "worst": worst,
        "allowed": min(1.0, round(1.5 * worst + 0.005, 2)),
    }


def _lengths(found: Mapping[str, Survey], base: Path, budget: float) -> dict[str, Any]:
    """Return what depends on how many tokens rows have, estimated from their characters."""
    characters = _characters_of_a_token(base, [text for one in found.values() for text in one.sample])
    # At most as many: the longest have the most turns.
    heads = {key: TURN_TOKENS * one.turns for key, one in found.items()}
    longest = max(one.quantile(0.99) / characters + heads[key] for key, one in found.items())
    wanted = next((size for size in LENGTHS if longest <= size), LENGTHS[-1])
    limit = min(wanted, context_length(base) or wanted)
    told = "99 % of the rows are shorter, by their characters; longer ones are cut"
    if longest > limit:
        shares = {key: sum(n / characters > limit for n in one.lengths) / one.usable for key, one in found.items()}
        cut = [f"{share:.0%} of {key.removeprefix('data.')}" for key, share in shares.items() if share >= 0.005]
        most = "the base has no more positions" if limit < wanted else "longer ones take much memory"
        told = f"{most}; longer rows are cut: some {', '.join(cut) or 'few'}"
    tokens = 0
    if not found["data.pool"].more:
        whole = sum(min(limit, n / characters) for n in found["data.pool"].lengths)
        tokens = int(float(f"{whole * budget:.2g}"))
    return {"max_tokens": limit, "max_tokens_told": told, "tokens": tokens}


def _characters_of_a_token(base: Path, texts: Sequence[str]) -> float:
    """Return how many characters of these texts a token has: by the tokenizer of a base that is a folder here."""
    file = base / "tokenizer.json"
    if not file.is_file():
        return CHARACTERS
    import tokenizers

    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # noqa: BLE001 - what its parser raises
        raise ConfigError(f"--model: {file} cannot be read as a tokenizer: {error}") from None
    tokens = sum(len(found.ids) for found in tokenizer.encode_batch(list(texts), add_special_tokens=False))
    return max(1.0, sum(map(len, texts))) / max(1, tokens)


def _places(files: Files, found: Mapping[str, Survey]) -> dict[str, Any]:
    """Return what names files: the root, and for pool and tasks the entries with what was found in them."""
    local = [os.path.abspath(entry) for entry in files.all if not _remote(entry)]
    root = os.path.commonpath([os.path.dirname(path) for path in local]) if local else "."

    def place(entries: Sequence[str], key: str) -> dict[str, Any]:
        names = [entry if _remote(entry) else os.path.relpath(os.path.abspath(entry), root) for entry in entries]
        of = found[key]
        told = f"{of.usable:,} usable rows{' or more' if of.more else ''}: {_some(of.forms)}"
        return {"files": names, "scoped": of.shared > 0, "told": told, "rows": of.usable}

    tasks = [
        {
            "name": name,
            "target": place(entries, f"data.targets.{name}"),
            "sources": [source for source in found["data.pool"].sources if _alike(name, source)],
            "test": place(files.tests[name], f"data.targets.{name}.test") if name in files.tests else None,
        }
        for name, entries in files.targets.items()
    ]
    several = len(found["data.pool"].sources) > 1
    return {
        "root": root,
        "pool": place(files.pool, "data.pool"),
        "sources": _some(found["data.pool"].sources) if several else "",
        "tasks": tasks,
        "mark": "" if files.tests else "# ",
    }


def _alike(task: str, source: str) -> bool:
    """Return whether one name begins with the other: gsm8k and gsm8k_train."""
    a, b = task.casefold(), source.casefold()
    return bool(b) and (a.startswith(b) or b.startswith(a))


def _some(counts: Mapping[str, int]) -> str:
    """Return the most frequent names on one line."""
    names = sorted(counts, key=lambda name: -counts[name])
    shown = [visible(" ".join(name.split()), lines=False)[:60] for name in names[:NAMES_SHOWN]]
    return "; ".join([*shown, *([f"{len(names) - NAMES_SHOWN} more"] if len(names) > NAMES_SHOWN else [])])


def _remote(entry: str) -> bool:
    return is_uri(entry) or entry.startswith(PREFIX)


def _quoted(value: Any) -> str:
    """Return a value as YAML on one line, as it stands in a list: a text stays that text whatever it holds."""
    plain = str(value).isprintable()  # else every odd character is written as an escape
    style = {"allow_unicode": plain, "default_style": None if plain else '"'}
    return yaml.safe_dump([value], default_flow_style=True, width=2**20, **style).strip()[1:-1]
