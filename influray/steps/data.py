"""data: the catalogues of pool, targets and held-out records."""

from __future__ import annotations

import contextlib
import datetime
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from influray.config import Config
from influray.data import costs
from influray.steps.cheap_pass import description, passed_rows
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Recorded, Step
from influray.store.artifact import fingerprint, read_manifest
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue, Split
    from influray.data.files import DataFile
    from influray.data.jobs import Crew

logger = logging.getLogger(__name__)


def data(context: StepContext) -> StepResult:
    """Bring the catalogues of pool, targets and held-out records up to date."""
    cfg, directory = context.config.data, context.directory
    files = source_files(context.config)
    _tell_shared(files)
    before = [read_manifest(directory.data(split)) for split in files]
    catalogues = {}
    with contextlib.ExitStack() as stack:
        workers = _Workers(context, stack)
        for split, found in files.items():
            if not found:
                continue
            if split == "pool" and context.config.cascade is not None:
                catalogues[split] = _passed(context)
                continue
            catalogues[split] = _catalogued(context, split, found, workers)
    rows = {split: len(catalogue) for split, catalogue in catalogues.items()}
    names = ("tokens", "cut_by_template", "truncated")
    columns = {split: catalogue.facts(*names) for split, catalogue in catalogues.items()}
    tokens = {split: int(found["tokens"].sum()) for split, found in columns.items()}
    truncated = {split: count for split, found in columns.items() if (count := int(found["truncated"].sum()))}
    if truncated:
        parts = [f"{count} of the {rows[split]} rows of the {split}" for split, count in truncated.items()]
        logger.warning("longer than data.max_tokens (%d), and cut there: %s", cfg.max_tokens, ", ".join(parts))
    for split, found in columns.items():
        if cut := int(found["cut_by_template"].sum()):
            logger.warning(
                "of %d of the %d rows of the %s the chat template leaves out the tools or a part of an answer; "
                "`influray inspect --row` shows which, and model.chat_template takes a file that writes it",
                *(cut, rows[split], split),
            )
    return StepResult(
        fingerprint({split: catalogue.digest for split, catalogue in catalogues.items()}),
        skipped=before == [read_manifest(directory.data(split)) for split in files],
        facts={
            "rows": sum(rows.values()),
            "tokens": sum(tokens.values()),
            **{f"{split}_rows": count for split, count in rows.items()},
            "pool_tokens": tokens["pool"],
            "truncated": truncated,
        },
        artifacts=[*(f"data/{split}/manifest.json" for split in catalogues), "quarantine.jsonl"],
    )


def other_pool(context: StepContext, files: Sequence[DataFile]) -> Catalogue:
    """Bring the catalogue of a pool of these files up to date, where `pool_at` of the context's directory has it."""
    with contextlib.ExitStack() as stack:
        return _catalogued(context, "pool", [("", file) for file in files], _Workers(context, stack))


def _catalogued(
    context: StepContext, split: Split, files: Sequence[tuple[str, DataFile]], workers: _Workers
) -> Catalogue:
    from influray.data.catalogue import build_catalogue
    from influray.data.chat import split_encoder
    from influray.model.loading import tokenizer_digest

    cfg, directory = context.config.data, context.directory
    encoder = split_encoder(context.config, context.tokenizer, split)
    key = fingerprint([tokenizer_digest(context.tokenizer), encoder.template_digest, cfg.max_tokens, encoder.end_token])
    context.progress.current.note(f"reading the {split}, {len(files)} files")
    return build_catalogue(
        directory.data(split),
        split,
        files,
        encoder,
        key,
        cfg,
        quarantine=directory.quarantine_path,
        find_crew=workers.for_seconds,
    )


def _tell_shared(files: Mapping[Split, Sequence[tuple[str, DataFile]]]) -> None:
    """Warn of files that are both in the pool and a target or a test."""
    from influray.data.entries import in_pool

    pool = [file for _, file in files["pool"]]
    for split in ("target", "test"):
        if both := in_pool(pool, [file for _, file in files[split]]):
            names = ", ".join(file.name for file in both)
            logger.warning(
                "the pool holds files of the %ss, whose rows would be chosen for themselves: %s", split, names
            )


def _passed(context: StepContext) -> Catalogue:
    """Bring the catalogue of the rows that passed the cascade up to date; bad rows are in its own quarantine."""
    from influray.data.catalogue import Catalogue
    from influray.data.quarantine import write_quarantine
    from influray.data.subset import build_subset

    row_n, judged = passed_rows(context.cascade)
    facts = {"cascade": {"rows": judged, **description(context.config)}}
    for stage in ("read", "encode"):
        write_quarantine(context.directory.quarantine_path, "pool", stage, [])
    return build_subset(context.directory.data("pool"), Catalogue(context.whole_pool), row_n, facts)


def source_files(config: Config) -> dict[Split, list[tuple[str, DataFile]]]:
    """Return (task, file) of each split's files, in the order in which new ones get their rows; a pool's task is "".

    Raises:
        DataError: one is not there.
    """
    from influray.data.entries import pool_files, target_files

    cfg = config.data
    return {
        "pool": [("", file) for file in pool_files(cfg)],
        "target": [(task, file) for task in cfg.targets for file in target_files(cfg, task)],
        "test": [(task, file) for task in cfg.targets for file in target_files(cfg, task, test=True)],
    }


def _stale(config: Config, directory: RunDirectory, recorded: Recorded) -> str:
    """Return which file is not the one that was catalogued; of files that were not written since, none is read."""
    from influray.data.files import file_digest

    started = recorded["data"].get("started")
    since = datetime.datetime.fromisoformat(started).timestamp() if started else 0.0
    for split, files in source_files(config).items():
        manifest = read_manifest(directory.data(split)) or {"files": []}
        if split == "pool" and ("cascade" in manifest) != (config.cascade is not None):
            return "cascade has changed"
        known = {(file["group"], file["name"]): file["digest"] for file in manifest["files"]}
        if {(task, file.name) for task, file in files} != known.keys():
            return "files have come or gone"
        for task, file in files:
            # `started` is cut to the second: what was written earlier in that second is not newer.
            newer = file.kind != "hub" and Path(file.path).stat().st_mtime >= since + 1
            if newer and file_digest(file) != known[task, file.name]:
                return f"{file.name} has been written since"
    return ""


def _describe(config: Config) -> str:
    data = config.data
    return f"{len(data.pool)} pool entries, {len(data.targets)} tasks, max_tokens {data.max_tokens}"


DATA = Step("data", data, ("data", "model.base", "model.revision", "model.chat_template"), _describe, _stale)


class _Workers:
    """The actors that make catalogues, from when they first pay off until `stack` is left."""

    def __init__(self, context: StepContext, stack: contextlib.ExitStack) -> None:
        self._context = context
        self._stack = stack
        self._crew: Crew | None = None

    def for_seconds(self, seconds: float) -> Crew | None:
        """Return the actors where they save more of so many seconds of work than they take to start, else None."""
        if seconds <= costs.DataRates().startup:  # however many there are: nothing is connected to
            return None
        if self._crew is None:
            from influray.runtime.cluster import one_core_each
            from influray.runtime.drafting import DataCrew

            context = self._context
            resources = one_core_each(context.config.resources, context.resources, context.cluster)
            # An autoscaling cluster may add workers later.
            if not resources.follows and not costs.data_workers_pay(seconds, resources.workers, costs.DataRates()):
                return None
            progress = context.progress.current
            crew = DataCrew(
                context.config.model_dump(mode="json"),
                context.directory.address,
                resources,
                progress.expect,
                progress.on_event,
                progress.on_receipt,
                pool_at=context.directory.pool_at,
            )
            self._stack.callback(crew.close)
            self._crew = crew
        return self._crew
