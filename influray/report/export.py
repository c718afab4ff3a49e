"""Writing a selection as a file that trainers read, with their settings beside it.

The file holds the records in order of choice, every one with the same columns, and their conversations whole. A
trainer's settings are written only where it would train on every record as it stands; the reason is told otherwise.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from influray.config import Config, TuneConfig
from influray.data.catalogue import Catalogue
from influray.data.export_forms import FORMATS, OPTIONS, Unfit, formed
from influray.data.records import Record
from influray.model.step_plan import StepPlan
from influray.protocols import ConfigError, DataError
from influray.report.exported_files import OwnFiles
from influray.report.trainers import NAMES, Written, misread, snippet
from influray.store.artifact import committed_file, writing
from influray.store.late_types import FirstChunk
from influray.store.mirror import local
from influray.store.run_directory import RunDirectory
from influray.store.selection import TABLE

WITH = ("rank", "merit", "task", "weight")  # columns that may be asked for
RECORDS_AT_ONCE = 1024
SHOWN = 5  # ids of records that a message names
LISTS = {"messages": "role", "prompt": "role", "completion": "role", "conversations": "from"}
EMPTY: Mapping[str, Any] = {"history": [], OPTIONS: {}}  # in records that have none; null for all others


@dataclass(frozen=True)
class Exported:
    """What was written: `path`, the number of `records`, trainer -> its files, and what people should know."""

    path: str
    records: int
    trainers: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...]


@dataclass
class _Survey:
    """What holds for all records of a file, found before any is written."""

    columns: dict[str, None] = field(default_factory=dict)
    plain: dict[str, bool] = field(default_factory=dict)  # lists of turns of a role and a text alone
    untrained: bool = False
    several: bool = False
    options: list[Mapping[str, Any]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    refused: dict[tuple[str, str], list[str]] = field(default_factory=dict)  # (reason, better form) -> ids
    misread: dict[str, dict[str, list[str]]] = field(default_factory=dict)  # trainer -> reason -> ids
    kept: list[int] = field(default_factory=list)  # places in the selection
    fractions: int = 0  # records with one that `datasets` rounds where it reads JSON lines


def export(
    run: RunDirectory,
    config: Config,
    name: str,
    to: str | Path,
    form: str = "messages",
    *,
    parquet: bool = False,
    beside: Sequence[str] = (),
    skip: bool = False,
) -> Exported:
    """Write the selection `name` in a form of FORMATS to a .jsonl or .parquet file, or into a folder.

    `beside` are columns of WITH that are added. `skip` leaves out records that the form cannot carry; they are
    counted in the notes. Files that were not written by an export, or were changed since, are never replaced.

    Raises:
        ConfigError: a form, column or place that cannot be.
        DataError: records that the form cannot carry; it names them and the form that can.
        ArtifactMismatch: there is no such selection, or it is not what was committed.
    """
    _check(form, beside)
    file, parquet = _place(run, to, name, parquet)
    own = OwnFiles(file.parent)
    own.check(file.name)
    table = _table(run, name)
    catalogue = Catalogue(run.data("pool"))
    survey = _surveyed(form, catalogue, table)
    _refuse(survey, form, skip)
    own.begin(file.name)
    rows = _rows(form, catalogue, table, survey, beside)
    digest = _write_parquet(file, rows, survey, beside) if parquet else _write_lines(file, rows)
    written = Written(
        file.name,
        form,
        parquet,
        frozenset(survey.columns),
        survey.untrained,
        survey.several,
        survey.options[0] if survey.options and form != "prompt-completion" else {},
        _steps(config.tune, catalogue, table["row"].to_numpy()[survey.kept]),
    )
    files = {
        trainer: snippet(trainer, written, config, file.stem) for trainer in NAMES if trainer not in survey.misread
    }
    made = own.commit(file, digest, files)
    return Exported(str(file), len(survey.kept), made, tuple(_notes(survey, form, parquet)))


def _steps(tune: TuneConfig | None, catalogue: Catalogue, rows: np.ndarray) -> int | None:
    """Return after how many steps a training on these rows ends, None where its epochs say it."""
    if tune is None or tune.tokens is None:
        return tune and tune.steps
    rows = np.sort(rows)
    plan = StepPlan(len(rows), tune.batch_size, tune.device_batch_size, 1, tune.seeds[0])
    return plan.steps_reaching(tune.tokens, np.array(catalogue.gather("tokens", rows)))


def _check(form: str, beside: Sequence[str]) -> None:
    if form not in FORMATS:
        raise ConfigError(f"--format: found {form!r}, expected one of {', '.join(FORMATS)}")
    for column in beside:
        if column not in WITH:
            raise ConfigError(f"--with: found {column!r}, expected columns of {', '.join(WITH)}, with commas between")


def _place(run: RunDirectory, to: str | Path, name: str, parquet: bool) -> tuple[Path, bool]:
    """Return the file that is written and whether it is Parquet."""
    path = local(to, "--to")
    ending = path.suffix.lower()
    if ending in (".json", ".csv", ".tsv", ".txt", ".gz", ".zst", ".arrow"):
        raise ConfigError(f"--to: {to} ends in {ending}; name a file in .jsonl or .parquet, or a folder")
    if ending == ".jsonl" and parquet:
        raise ConfigError(f"--to: {to} is a .jsonl file, and --parquet was given; end it in .parquet")
    if ending not in (".jsonl", ".parquet"):
        if path.is_file():
            raise ConfigError(f"--to: {to} is a file; name one in .jsonl or .parquet, or a folder")
        path, ending = path / f"{name}{'.parquet' if parquet else '.jsonl'}", ".parquet" if parquet else ".jsonl"
    inside = path.resolve().parent
    if inside.is_relative_to(run.path.resolve()) and inside.relative_to(run.path.resolve()).parts[:1] != ("export",):
        raise ConfigError(
            f"--to: {to} lies among the files of the run; take {run.path / 'export'} or a folder elsewhere"
        )
    if path.is_dir():
        raise ConfigError(f"--to: {path} is a folder; name a file, or the folder above it")
    return path, ending == ".parquet"


def _table(run: RunDirectory, name: str) -> pa.Table:
    return pq.read_table(committed_file(run.selection(name), TABLE, "select")).sort_by("rank")


def _records(catalogue: Catalogue, table: pa.Table) -> Iterator[tuple[int, str, str, Record]]:
    """Yield (place in the selection, id, source, record)."""
    for start in range(0, len(table), RECORDS_AT_ONCE):
        part = table.slice(start, RECORDS_AT_ONCE)
        names = zip(part["id"].to_pylist(), part["source"].to_pylist(), strict=True)
        records = catalogue.all_parsed(part["row"].to_pylist())
        for i, ((identity, source), record) in enumerate(zip(names, records, strict=True)):
            yield start + i, identity, source, record


def _surveyed(form: str, catalogue: Catalogue, table: pa.Table) -> _Survey:
    survey = _Survey()
    first: Record | None = None
    for place, identity, _, record in _records(catalogue, table):
        try:
            made = formed(record, form)
        except Unfit as unfit:
            survey.refused.setdefault((unfit.reason, unfit.better), []).append(identity)
            continue
        first = first or record
        survey.kept.append(place)
        survey.columns |= dict.fromkeys(made.columns)
        survey.left_out.update(made.left_out)
        survey.fractions += _has_long_fraction(made.columns)
        for column, role in LISTS.items():
            plain = all(set(turn) <= {role, "content", "value"} for turn in made.columns.get(column, ()))
            survey.plain[column] = survey.plain.get(column, True) and plain
        answers = [turn for turn in record.turns if turn.role == "assistant"]
        survey.untrained |= not all(turn.trained for turn in answers)
        survey.several |= len(answers) > 1
        if record.template_options and not survey.options:
            survey.options.append(record.template_options)
        for trainer in NAMES:
            reason = misread(trainer, form, record, first)
            if reason:
                survey.misread.setdefault(trainer, {}).setdefault(reason, []).append(identity)
    return survey


def _refuse(survey: _Survey, form: str, skip: bool) -> None:
    refused = sum(map(len, survey.refused.values()))
    if refused and (not skip or not survey.kept):
        why = "; ".join(_refusals(survey))
        raise DataError(
            f"--format: {form} cannot carry {refused} of {refused + len(survey.kept)} records: {why}. Nothing was "
            "written; take the form named, or leave these out with --skip"
        )


def _refusals(survey: _Survey) -> list[str]:
    return [f"{reason} ({_counted(ids)}; --format {better} can)" for (reason, better), ids in survey.refused.items()]


def _counted(ids: Sequence[str]) -> str:
    return f"{len(ids)} records: {', '.join(ids[:SHOWN])}{', ...' if len(ids) > SHOWN else ''}"


def _notes(survey: _Survey, form: str, parquet: bool) -> list[str]:
    notes = [f"left out: {line}" for line in _refusals(survey)]
    if survey.fractions and not parquet:
        notes.append(
            "`datasets` rounds fractions to ten decimals where it reads JSON lines: in arguments of "
            f"{survey.fractions} records; --parquet keeps them"
        )
    if survey.left_out:
        keys = ", ".join(f"{key} in {count} records" for key, count in survey.left_out.items())
        notes.append(f"{form} has no place for {keys}; messages has")
    for trainer, reasons in survey.misread.items():
        all_of_them = len(survey.kept)
        why = "; ".join(
            f"{reason} ({'all records' if len(ids) == all_of_them else _counted(ids)})"
            for reason, ids in reasons.items()
        )
        notes.append(f"no settings for {NAMES[trainer]}: {why}")
    return notes


def _has_long_fraction(value: Any) -> bool:
    if isinstance(value, float):
        return abs(value) >= 1e15 or round(value, 10) != value
    if isinstance(value, dict):
        value = list(value.values())
    return isinstance(value, list) and any(map(_has_long_fraction, value))


def _rows(
    form: str, catalogue: Catalogue, table: pa.Table, survey: _Survey, beside: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """Yield what is written of each record, every one with the same columns in the same order."""
    kept = set(survey.kept)
    merits, tasks, row_n = table["merit"].to_pylist(), table["task"].to_pylist(), table["row"].to_numpy()
    weights = catalogue.gather("weight", row_n) if "weight" in beside else []
    for place, identity, source, record in _records(catalogue, table):
        if place not in kept:
            continue
        columns = formed(record, form).columns
        row = {name: columns.get(name, EMPTY.get(name)) for name in survey.columns}
        row |= {"id": identity, "source": source}
        if "rank" in beside:
            row["rank"] = place + 1
        if "merit" in beside:
            row["merit"] = None if merits[place] != merits[place] else merits[place]
        if "task" in beside:
            row["task"] = tasks[place]
        if "weight" in beside:
            row["weight"] = float(weights[place])
        yield row


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> str:
    digest, chunk = hashlib.sha256(), FirstChunk(str(path), "add --parquet")
    with writing(path) as file:
        for row in rows:
            line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
            chunk.add(row, len(line))
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


def _write_parquet(path: Path, rows: Iterator[dict[str, Any]], survey: _Survey, beside: Sequence[str]) -> str:
    schema = pa.schema([(name, _type(name, survey)) for name in (*survey.columns, "id", "source", *beside)])
    with writing(path) as file, pq.ParquetWriter(file, schema) as writer:
        block: list[dict[str, Any]] = []
        for row in rows:
            block.append(row)
            if len(block) == RECORDS_AT_ONCE:
                writer.write_table(_arrow(block, schema))
                block = []
        if block:
            writer.write_table(_arrow(block, schema))
    with open(path, "rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


def _type(name: str, survey: _Survey) -> pa.DataType:
    text = pa.string()
    if name == "conversations":
        return pa.list_(pa.struct([("from", text), ("value", text), *([("train", pa.bool_())] * survey.untrained)]))
    if name in LISTS:
        # As text of JSON every message keeps exactly the keys that it has; `datasets` gives them back as objects.
        return pa.list_(pa.struct([("role", text), ("content", text)]) if survey.plain[name] else pa.json_())
    types = {"rank": pa.int64(), "merit": pa.float64(), "weight": pa.float64(), OPTIONS: pa.json_()}
    return pa.list_(pa.list_(text)) if name == "history" else types.get(name, text)


def _arrow(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_arrays([_array([row[f.name] for row in rows], f.type) for f in schema], schema=schema)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    if isinstance(kind, pa.JsonType):
        return pa.ExtensionArray.from_storage(kind, pa.array([_json(value) for value in values], pa.string()))
    if pa.types.is_list(kind) and isinstance(kind.value_type, pa.JsonType):
        texts = pa.array([[_json(item) for item in value] for value in values], pa.list_(pa.string()))
        items = pa.ExtensionArray.from_storage(kind.value_type, texts.values)
        return pa.ListArray.from_arrays(texts.offsets, items, type=kind)
    return pa.array(values, kind)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
