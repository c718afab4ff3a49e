"""blame: which training rows are behind records that a tuned model fails on, and the proof by removal.

The influence of each row of a selection is taken on every failing and every passing record, as on a target of the run.
Rows that harm the failing records, and not the passing ones, are the suspects. Then the model is tuned without them,
and without random rows of as many tokens: only that difference says whether they are behind it.

Shape suffixes: n rows of the selection, F failing and P passing records, k suspects.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influray.ask.warm import WarmFeaturizers
from influray.config_base import as_written
from influray.config_data import TargetConfig
from influray.config_messages import near
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import split_encoder
from influray.data.entries import entry_files
from influray.evaluation.contrast import contrast
from influray.evaluation.paired_effect import paired_effect
from influray.evaluation.stability import means_by_label
from influray.protocols import ConfigError, DataError
from influray.runtime.retraining_worker import make_bench
from influray.steps.context import StepContext
from influray.store.artifact import fingerprint, write_sealed
from influray.store.selection import read_selection
from influray.store.vectors import PoolVectors
from influray.validation import draws
from influray.validation.experiments import result_path, retrain_missing
from influray.validation.setting import Setting

FAILING, PASSING = "failing", "passing"
FULL = "full"  # the whole pool, in the place of a selection
SHOWN = 50  # suspects that the result describes
SAME = 1e-12  # spread of influences below which they are equal


@dataclass(frozen=True)
class Asked:
    """What is asked: files of records, and how the proof is made."""

    failing: tuple[str, ...]
    passing: tuple[str, ...] = ()
    selection: str = ""  # "" = the first of the config
    rows: float | int = 0.05  # suspects: rows, or a fraction of the selection's, rounded down
    draws: int = 3
    prove: bool = True


def blame(context: StepContext, asked: Asked) -> None:
    """Find the suspects, measure their removal, and write RUN/validate/blame.json.

    Raises:
        ConfigError: no such selection, or rows, draws or seeds that give no answer.
        DataError: records that cannot be read, or have no usable gradient.
        ArtifactMismatch: the run cannot be asked (`influray query`).
    """
    setting = Setting(context)
    rows = _rows_of(setting, asked)
    count = asked.rows if isinstance(asked.rows, int) else int(as_written(asked.rows) * len(rows))
    if not 0 < count < len(rows):
        raise ConfigError(f"--rows: {asked.rows} of {len(rows)} rows is {count}; at least one is taken, and one stays")
    if asked.prove:
        setting.require_seeds("blame")
        if asked.draws < 2:
            raise ConfigError(f"--draws: {asked.draws} has no spread, so there is no interval; 2 are enough")
    folders = _catalogues(context, asked)
    influence = _influence(context, folders, rows)
    found = contrast(influence[FAILING], influence.get(PASSING, np.zeros((0, len(rows)))))
    order_k = np.lexsort((rows, found.value_n))[:count]  # what harms most; ties to the lower row
    result = {
        "experiment": "blame",
        "records": {name: len(of_records) for name, of_records in influence.items()},
        "selection": _selection(setting, asked),
        "rows": len(rows),
        "suspects": count,
        "sources": _sources(setting, rows, influence),
        "worst": _described(setting, rows[order_k[:SHOWN]], found.value_n[order_k], found.half_n[order_k]),
        "removal": _removal(setting, asked, rows, np.sort(rows[order_k]), folders) if asked.prove else None,
    }
    write_sealed(result_path(context.directory, "blame"), {**result, "fingerprint": fingerprint(result)})


def _selection(setting: Setting, asked: Asked) -> str:
    known = [one.name for one in setting.context.config.selectors]
    name = asked.selection or known[0]
    if name not in (*known, FULL):
        raise ConfigError(
            f"--selection: {name!r} is none of the run{near(name, known)} (known: {', '.join(known)}, full)"
        )
    return name


def _rows_of(setting: Setting, asked: Asked) -> np.ndarray:
    """Return the rows of the selection that have scores, ascending."""
    name, scored = _selection(setting, asked), setting.candidates
    if name == FULL:
        return scored
    return np.intersect1d(read_selection(setting.context.directory.selection(name)).rows, scored)


def _catalogues(context: StepContext, asked: Asked) -> dict[str, Path]:
    """Return the folders of the catalogues of failing and passing records, made where they are not there."""
    from influray.model.loading import tokenizer_digest

    config, found = context.config, {}
    for name, files in ((FAILING, asked.failing), (PASSING, asked.passing)):
        if not files:
            continue
        sources = [(name, file) for file in entry_files(files, Path(), f"--{name}", config.data.columns)]
        encoder = split_encoder(config, context.tokenizer, "test")
        key = fingerprint(
            [tokenizer_digest(context.tokenizer), encoder.template_digest, config.data.max_tokens, encoder.end_token]
        )
        folder = context.directory.validation / "records" / name
        quarantine = folder.with_name(f"{name}.quarantine.jsonl")
        settings = config.data.model_copy(update={"targets": {name: TargetConfig(files=files)}})
        build_catalogue(folder, "test", sources, encoder, key, settings, quarantine=quarantine)
        found[name] = folder
    return found


def _influence(context: StepContext, folders: dict[str, Path], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return the influence of rows of the pool on the records of each group, float64 [records, n].

    In standard deviations over the rows, so that records count alike. Records without a usable gradient are left out.

    Raises:
        DataError: a group has no other.
    """
    vectors = PoolVectors(context.directory)
    warm = WarmFeaturizers(context.directory, context.config, len(vectors.weights))
    position_n = vectors.positions_of(rows)
    found = {}
    for name, folder in folders.items():
        records = Catalogue(folder)
        made = warm.rows(records.tokenized(0, len(records)))
        usable = [q for q, reason in enumerate(made.failure_Q) if not reason]
        if not usable:
            raise DataError(f"--{name}: no record has a usable gradient: {made.failure_Q[0]}")
        query_QF = vectors.query([unit_QD[usable] for unit_QD in made.unit_KQD], list(made.norm_KQ[:, usable]))
        score_Qn = np.empty((len(usable), len(rows)))
        step = max(1, vectors.block_bytes // (4 * vectors.dimension))
        for start in range(0, len(rows), step):
            here = slice(start, start + step)
            score_Qn[:, here] = query_QF @ vectors.take(position_n[here]).T
        score_Qn -= score_Qn.mean(axis=1, keepdims=True)
        spread_Q1 = score_Qn.std(axis=1, keepdims=True)
        found[name] = score_Qn / np.where(spread_Q1 > SAME, spread_Q1, 1.0)
    return found


def _sources(setting: Setting, rows: np.ndarray, influence: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Return the contrast of every source, the mean over its rows, the most harmful first."""
    source_n = np.asarray(setting.context.catalogue("pool").facts("source")["source"], object)[rows]
    by_source = {name: means_by_label(of_records.T, source_n.tolist()) for name, of_records in influence.items()}
    names = list(by_source[FAILING])
    counts = {name: int((source_n == name).sum()) for name in names}

    def lines(group: str) -> np.ndarray:
        found = by_source.get(group)
        return np.zeros((0, len(names))) if found is None else np.stack([found[name] for name in names], axis=1)

    found = contrast(lines(FAILING), lines(PASSING))
    return [
        {"source": names[i], "rows": counts[names[i]], **_interval(found.value_n[i], found.half_n[i])}
        for i in np.argsort(found.value_n, kind="stable").tolist()
    ]


def _described(setting: Setting, rows: np.ndarray, value_k: np.ndarray, half_k: np.ndarray) -> list[dict[str, Any]]:
    catalogue = setting.context.catalogue("pool")
    return [
        {
            "row": int(row),
            "id": catalogue.cell(int(row), "id"),
            "source": catalogue.cell(int(row), "source"),
            **_interval(value_k[i], half_k[i]),
        }
        for i, row in enumerate(rows)
    ]


def _interval(value: Any, half: Any) -> dict[str, Any]:
    known = bool(np.isfinite(half))
    return {"value": float(value), "interval": [float(value - half), float(value + half)] if known else None}


def _removal(
    setting: Setting, asked: Asked, rows: np.ndarray, suspects: np.ndarray, folders: dict[str, Path]
) -> dict[str, Any]:
    """Return what tuning without the suspects does to the losses, less what it does without random rows."""
    context = setting.context
    bench = make_bench(context.directory, context.config, {"base": context.model_digest}, folders)
    token_n = context.catalogue("pool").facts("tokens")["tokens"].astype(np.int64)[rows]
    tokens = int(token_n[np.searchsorted(rows, suspects)].sum())
    seed = setting.config.seed
    drawn = [draws.random_rows(rows, token_n, tokens, seed, len(rows), r) for r in range(asked.draws)]
    sets = [rows, *(np.setdiff1d(rows, taken, assume_unique=True) for taken in (suspects, *drawn))]
    jobs = [one for left in sets for one in setting.with_every_seed(left)]
    retrain_missing(context, bench, jobs)
    results = [bench.committed(one) for one in jobs]
    losses = [one["losses"] for one in results if one is not None]
    assert len(losses) == len(jobs), "all are committed"
    groups = {name: [name] * len(losses[0][name]) for name in folders}
    if "test" in losses[0]:
        groups["test"] = list(setting.test_tasks)
    shape = len(sets), len(setting.config.seeds)
    lines = []
    for split, tasks in groups.items():
        for task in dict.fromkeys(tasks):
            member = [name == task for name in tasks]
            loss_CS = np.array([np.asarray(one[split])[member].mean() for one in losses]).reshape(shape)
            lines.append({"records": task, "split": split, **_effect(loss_CS)})
    return {"tokens": tokens, "draws": asked.draws, "seeds": list(setting.config.seeds), "lines": lines}


def _effect(loss_CS: np.ndarray) -> dict[str, Any]:
    """Return the loss with all rows and without the suspects, and the gain over random removal with its interval."""
    found = paired_effect(-loss_CS[1], -loss_CS[2:].T)
    return {
        "with_all": float(loss_CS[0].mean()),
        "without": float(loss_CS[1].mean()),
        "without_random": float(loss_CS[2:].mean()),
        "value": found.value,
        "interval": list(found.interval),
    }
