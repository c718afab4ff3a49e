"""The steps of a run: what each is made from, its fingerprint, and the call that makes it.

A step returns a StepResult; `skipped` says that the committed artifact was already the right one. Nothing here
knows Ray: the runtime is called with tasks, folders and plain config.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from influray.config import Config
from influray.protocols import ConfigError, DataError
from influray.store.artifact import SCHEMA, ShardStore, fingerprint, read_manifest, require_manifest
from influray.store.run_directory import RunDirectory, versions

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue
    from influray.progress import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves in run.json."""

    fingerprint: str
    skipped: bool
    facts: Mapping[str, Any] = field(default_factory=dict)


class StepContext:
    """What the steps of one run share; the expensive parts come into being when first asked for."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        until: str,
        progress: Progress,
        stack: contextlib.ExitStack,
        address: str | None,
    ) -> None:
        self.config = config
        self.until = until  # what the user asked for
        self.directory = directory
        self.progress = progress
        self._stack = stack
        self._address = address

    @cached_property
    def cluster(self) -> Any:
        """The Ray cluster, connected at first use and left when the run ends."""
        from influray.runtime.cluster import connect

        return self._stack.enter_context(connect(self.config.resources, self._address))

    @cached_property
    def resources(self) -> Any:
        from influray.runtime.cluster import resolve_resources

        return resolve_resources(self.config.resources, self.cluster)

    @cached_property
    def tokenizer(self) -> Any:
        from influray.model.loading import load_tokenizer

        return load_tokenizer(self.config.model)

    @cached_property
    def model_digest(self) -> str:
        """The content of the base model: weights, config and code that runs."""
        from influray.model.loading import model_digest

        return model_digest(self.config.model)

    def catalogue(self, split: str) -> Catalogue:
        from influray.data.catalogue import Catalogue

        return Catalogue(self.directory.data(split))

    @property
    def checkpoints(self) -> int:
        return int(require_manifest(self.directory.warmup, "warmup")["checkpoints"])

    def identity(self, **parts: Any) -> str:
        """Return the fingerprint of a step's parts, with what its bytes always depend on."""
        numeric = {name: versions().get(name) for name in ("torch", "transformers")}
        return fingerprint({"schema": SCHEMA, "versions": numeric, **parts})


def table() -> dict[str, Callable[[StepContext], StepResult]]:
    """Return step name -> the function that carries it out."""
    from influray.training_steps import evaluate, tune, warmup

    return {
        "data": data,
        "warmup": warmup,
        "featurize": featurize,
        "score": score,
        "select": select,
        "tune": tune,
        "evaluate": evaluate,
        "report": report,
    }


def data(context: StepContext) -> StepResult:
    """Bring the catalogues of pool, targets and held-out records up to date."""
    from influray.data.catalogue import build_catalogue
    from influray.data.chat import ChatEncoder
    from influray.data.readers import resolve_files
    from influray.model.loading import tokenizer_digest

    cfg, directory = context.config.data, context.directory
    files: dict[str, list[Any]] = {"pool": [("", f) for f in resolve_files(cfg.pool, cfg.root, "data.pool")]}
    for split, attribute in (("target", "files"), ("test", "test")):
        files[split] = [
            (task, file)
            for task, target in cfg.targets.items()
            for file in resolve_files(getattr(target, attribute), cfg.root, f"data.targets.{task}.{attribute}")
        ]
    before = [read_manifest(directory.data(split)) for split in files]
    catalogues = {}
    for split, found in files.items():
        if not found:
            continue
        end_token = cfg.target_end_token if split == "target" else True
        encoder = ChatEncoder(context.tokenizer, context.config.model.chat_template, cfg.max_tokens, end_token)
        key = fingerprint([tokenizer_digest(context.tokenizer), encoder.template_digest, cfg.max_tokens, end_token])
        context.progress.current.note(f"reading the {split}, {len(found)} files")
        catalogues[split] = build_catalogue(
            directory.data(split), split, found, encoder, key, cfg, quarantine=directory.quarantine_path
        )
    rows = {split: len(catalogue) for split, catalogue in catalogues.items()}
    _require_budgets(context.config, rows["pool"])
    tokens = {split: int(catalogue.facts("tokens")["tokens"].sum()) for split, catalogue in catalogues.items()}
    return StepResult(
        fingerprint({split: catalogue.digest for split, catalogue in catalogues.items()}),
        skipped=before == [read_manifest(directory.data(split)) for split in files],
        facts={
            "rows": sum(rows.values()),
            "tokens": sum(tokens.values()),
            **{f"{split}_rows": count for split, count in rows.items()},
            "pool_tokens": tokens["pool"],
        },
    )


def featurize(context: StepContext) -> StepResult:
    """Compute the feature rows of targets and pool at every checkpoint; only shards that are not there yet."""
    from influray.feature_step import plan, quarantine_failures

    stores = plan(context)
    missing = [(store, shard) for store in stores for shard in store.missing()]
    if missing:
        from influray.runtime.tasks import ShardTask
        from influray.runtime.workers import featurize as compute

        todo = [
            ShardTask(key, store.split, store.checkpoint, start, stop, str(store.store.folder))
            for store, (key, start, stop) in missing
        ]
        progress = context.progress.current
        shards = sum(len(store.shards) for store in stores)
        progress.expect(shards, "shards", done=shards - len(todo))
        compute(
            context.config.model_dump(mode="json"),
            context.directory.path,
            todo,
            context.resources,
            on_event=progress.on_event,
            on_receipt=progress.on_receipt,
        )
    manifests = [store.freeze() for store in stores]
    return StepResult(
        fingerprint([store.fingerprint for store in stores]),
        skipped=not missing,
        facts={
            "rows": sum(stop - start for _, (_, start, stop) in missing),
            "tokens": sum(_detail(store.store, key, "tokens") for store, (key, _, _) in missing),
            "shards": len(missing),
            "checkpoints": context.checkpoints,
            "failed_rows": quarantine_failures(context, stores),
            "epsilon_share": [m["epsilon_share"] for m in manifests if m["split"] == "pool"],
            "token_budget": manifests[-1]["token_budget"],
            "threads_per_worker": context.config.resources.threads_per_worker,
            "byte_reproducible": all(manifest["byte_reproducible"] for manifest in manifests),
        },
    )


def score(context: StepContext) -> StepResult:
    """Compute the attribution matrix from the committed datastores."""
    from influray.data.batches import plan_shards
    from influray.model.checkpoints import load_checkpoint
    from influray.scorers.inner_product import checkpoint_weights
    from influray.store.attribution import commit_attribution

    cfg, directory = context.config, context.directory
    numbers = range(1, context.checkpoints + 1)
    rates = [load_checkpoint(directory.checkpoint(k)).mean_learning_rate for k in numbers]
    weights = checkpoint_weights(cfg.attribution.weights, rates)
    parts = {
        split: [require_manifest(directory.features(split, k), "featurize")["parts"] for k in numbers]
        for split in ("target", "pool")
    }
    catalogue, targets = context.catalogue("pool"), context.catalogue("target")
    common = {
        "scorer": cfg.attribution.scorer,
        "options": cfg.attribution.options,
        "weights": weights,
        "targets": [[part["sha256"] for part in found] for found in parts["target"]],
        "target_catalogue": targets.digest,
    }
    store = ShardStore(directory.attribution)
    tasks = []
    for i, shard in enumerate(plan_shards(catalogue.file_lengths, cfg.features.rows_per_shard)):
        made_from = [found[i]["sha256"] for found in parts["pool"]]
        key = context.identity(step="score", **common, parts=made_from, start=shard.start, stop=shard.stop)
        tasks.append((key, shard.start, shard.stop))
    keys = [key for key, _, _ in tasks]
    made = fingerprint(keys)
    manifest = read_manifest(directory.attribution)
    if manifest is None or manifest["fingerprint"] != made:
        manifest = None
        _compute_scores(context, store, tasks, weights)
        row_T = _target_rows(context, numbers)
        known = targets.facts("id", "group")
        _require_columns(known["group"], row_T)
        ids, groups = ([known[name][row] for row in row_T] for name in ("id", "group"))
        commit_attribution(store, keys, {"fingerprint": made, "weights": list(weights)}, row_T, ids, groups)
    matrix = read_manifest(directory.attribution) or {}
    facts = {"rows": matrix["rows"], "columns": matrix["targets"], "weights": list(weights)}
    return StepResult(made, skipped=manifest is not None, facts=facts)


def select(context: StepContext) -> StepResult:
    """Carry out every selector of the config whose selection is not there yet."""
    directory = context.directory
    matrix = require_manifest(directory.attribution, "score")["fingerprint"]
    pool = context.catalogue("pool").digest
    todo, made = [], {}
    for selector in context.config.selectors:
        plain = selector.model_dump(mode="json")
        name = selector.name
        made[name] = fingerprint({"step": "select", "matrix": matrix, "pool": pool, "selector": plain})
        manifest = read_manifest(directory.selection(name))
        if manifest is None or manifest["fingerprint"] != made[name]:
            todo.append((name, {"run_dir": str(directory.path), "selector": plain, "fingerprint": made[name]}))
    if todo:
        from influray.runtime.selection import SelectionJob, run_selection

        jobs = [SelectionJob(name, "influray.selectors.output:select_and_write", arguments) for name, arguments in todo]
        cpus = min(1.0, context.cluster.cpus)
        context.progress.current.expect(len(jobs), "selections")
        run_selection(directory.path, jobs, context.progress.current.on_status, cpus=cpus)
        for name, _ in todo:  # a verdict on rows that are no longer chosen must not stand beside the new ones
            shutil.rmtree(directory.path / "evaluation" / name, ignore_errors=True)
    return StepResult(fingerprint(made), skipped=not todo, facts={"selections": len(made), "carried_out": len(todo)})


def report(context: StepContext) -> StepResult:
    """Write RUN/report/index.html from what is committed."""
    from influray.report.page import write_report

    write_report(context.directory.path)
    steps = context.directory.read()["steps"]
    made = fingerprint({name: facts.get("fingerprint") for name, facts in steps.items() if name != "report"})
    return StepResult(made, skipped=False)


def _require_budgets(config: Config, rows: int) -> None:
    # Hours before the selectors would say it.
    for index, selector in enumerate(config.selectors):
        budget = selector.budget
        if isinstance(budget, int) and budget > rows:
            raise ConfigError(f"selectors.{index}.budget: {budget} examples of a pool of {rows} usable rows")
        if isinstance(budget, float) and int(budget * rows) < 1:
            raise ConfigError(f"selectors.{index}.budget: {budget} of {rows} usable rows is less than one example")


def _compute_scores(
    context: StepContext, store: ShardStore, tasks: list[tuple[str, int, int]], weights: tuple[float, ...]
) -> None:
    from influray.runtime.tasks import ShardTask
    from influray.runtime.workers import score as compute

    todo = [
        ShardTask(key, "attribution", 0, start, stop, str(store.folder))
        for key, start, stop in tasks
        if store.valid_receipt(key) is None
    ]
    progress = context.progress.current
    progress.expect(len(tasks), "shards", done=len(tasks) - len(todo))
    compute(
        context.config.model_dump(mode="json"),
        context.directory.path,
        todo,
        context.resources,
        on_event=progress.on_event,
        on_receipt=progress.on_receipt,
        weights=weights,
    )


def _detail(store: ShardStore, key: str, name: str) -> int:
    receipt = store.receipt(key)
    return 0 if receipt is None else int(receipt.details[name])


def _target_rows(context: StepContext, checkpoints: range) -> Any:
    from influray.runtime.workers import valid_rows
    from influray.store.datastore import Datastore

    return valid_rows([Datastore(context.directory.features("target", k)) for k in checkpoints])


def _require_columns(group_of_row: list[str], row_T: Any) -> None:
    lost = sorted(set(group_of_row) - {group_of_row[row] for row in row_T})
    if lost:
        raise DataError(
            f"data.targets.{lost[0]}: none of its rows has a finite gradient at every checkpoint; "
            "the quarantine says why"
        )
