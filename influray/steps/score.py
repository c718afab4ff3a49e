"""score: the attribution matrix, from the committed datastores of all checkpoints.

A scorer that has passes over the pool is fitted first. Sums are taken of groups of consecutive shards, which follow
from the data alone, kept as files and added up in the order of rows: the bits are those of any number of workers.

Shape suffixes: N rows of the pool, T targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.config import Config
from influray.protocols import Arrays, ArtifactMismatch, Columns, ConfigError, DataError, FeatureRows, Scorer, Stores
from influray.registry import WARMED
from influray.scorers.exact_run import all_targets
from influray.scorers.propagation import Propagating, propagating_scorers
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Recorded, Step
from influray.store.arrays import ArraysFile, add_arrays, arrays_of, arrays_table
from influray.store.artifact import (
    Receipt,
    ShardStore,
    checked_table,
    fingerprint,
    hash_bytes,
    read_manifest,
    require_manifest,
)
from influray.store.checks import broken
from influray.store.datastore import features_digest
from influray.store.mirror import address_of
from influray.store.moments import ColumnStats, column_moments, column_stats
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.data.batches import ShardPlan
    from influray.store.attribution import Attribution

GROUPS = 16  # most files of sums in a pass: those of D x D numbers have 512 MB a checkpoint at D = 8192


@dataclass(frozen=True)
class Plan:
    """What is scored, and what goes into every key."""

    stores: Stores
    scorer: Scorer
    shards: list[ShardPlan]
    parts_K: list[list[str]]  # per checkpoint: the content of each shard of the pool
    common: dict[str, Any]
    start: Arrays  # what the first pass is given in the place of a state


@dataclass(frozen=True)
class Settled:
    """What a run's own pool has settled for the lines of other rows: what the scorer was fitted to, and the columns."""

    passes: list[str]  # the key of the last pass; none where the scorer has no pass
    state: ArraysFile | None  # that it left
    columns: Attribution  # the matrix that has them


def settled(directory: RunDirectory, config: Config) -> Settled:
    """Return what a scored run has settled.

    Raises:
        ArtifactMismatch: its matrix is not of its config's scorer, or not of its features; or the fit is gone.
    """
    from influray.scorers.options import made_stores, make_scorer
    from influray.store.attribution import Attribution

    matrix, settings = Attribution(directory.attribution), config.attribution
    made, scored_by = matrix.manifest, (settings.scorer, settings.options)
    pool = [require_manifest(directory.features("pool", k), "featurize") for k in range(1, len(made["weights"]) + 1)]
    digest = features_digest([[part["sha256"] for part in one["parts"]] for one in pool])
    if (made.get("scorer"), made.get("options"), made.get("pool_features")) != (*scored_by, digest):
        raise ArtifactMismatch(
            f"{directory.attribution}: was made by another scorer, or of other features, than the run has now; run "
            "`influray score` again"
        )
    scorer = make_scorer(settings.scorer, made_stores(pool, made["weights"]), settings.options)
    if isinstance(scorer, Propagating):
        raise ArtifactMismatch(
            f"attribution.scorer: {settings.scorer!r} carries over what other rows have; ask the run that has them "
            f"exactly, {scorer.exact.place}"
        )
    if not scorer.passes:
        return Settled([], None, matrix)
    fit, store = read_manifest(directory.fit), ShardStore(directory.fit)
    receipt = None if fit is None else store.valid_receipt(fit["fingerprint"])
    if fit is None or receipt is None or (fit["scorer"], fit["options"]) != scored_by:
        raise ArtifactMismatch(
            f"{directory.fit}: does not hold what {settings.scorer!r} was fitted to; run `influray score` again"
        )
    return Settled([fit["fingerprint"]], _state_file(store, receipt), matrix)


def score(context: StepContext, known: Settled | None = None) -> StepResult:
    """Compute the attribution matrix, and first what the scorer needs to know of the whole pool.

    Where that is `known`, because the pool is one of rows that the run has never seen, nothing is fitted to them, and
    their columns are standardised by the run's own mean and deviation.

    Raises:
        ArtifactMismatch: the columns are not those that are known.
    """
    from influray.store.attribution import commit_attribution

    plan = _plan(context)
    passes = known.passes if known else _pass_keys(context, plan)
    source_N = context.catalogue("pool").facts("source")["source"]
    tasks = []
    for i, shard in enumerate(plan.shards):
        made_from = {
            "parts": [parts[i] for parts in plan.parts_K],
            "sources": fingerprint(source_N[shard.start : shard.stop]),
            "fit": passes[-1:],
        }
        key = context.identity(step="score", **plan.common, **made_from, start=shard.start, stop=shard.stop)
        tasks.append((key, shard.start, shard.stop))
    keys = [key for key, _, _ in tasks]
    made = fingerprint(keys)
    store = ShardStore(context.directory.attribution)
    weights = list(plan.stores.weights)
    facts = _manifest_facts(context, plan, made) | (
        {"standardised_by": known.columns.manifest["fingerprint"]} if known else {}
    )
    manifest = read_manifest(context.directory.attribution)
    changed = manifest is None or any(manifest.get(name) != fact for name, fact in facts.items())
    if changed or broken(context.directory.attribution, manifest or {}):
        manifest = None
        columns = plan.scorer.columns(_target_columns(context, len(weights)))
        if known and (columns.ids, columns.tasks) != (known.columns.target_ids, known.columns.groups):
            raise ArtifactMismatch(
                f"{known.columns.folder}: is of other targets than the run has; run `influray score`"
            )
        state = known.state if known else _fit(context, plan, passes)
        _compute(context, plan, store, tasks, state=state)
        found, stats = _propagated(plan.scorer, state)
        stats = known.columns.stats if known else stats
        commit_attribution(store, keys, facts | found, columns.rows, columns.ids, columns.tasks, stats)
    matrix = read_manifest(context.directory.attribution) or {}
    facts = {"rows": matrix["rows"], "columns": matrix["targets"], "weights": weights, "passes": len(passes)}
    if isinstance(plan.scorer, Propagating):
        facts |= {"exact": plan.scorer.exact.digest, "held_out": matrix["propagation"]["held_out"]}
    return StepResult(made, manifest is not None, facts, ["attribution/manifest.json"])


def _manifest_facts(context: StepContext, plan: Plan, made: str) -> dict[str, Any]:
    """Return what the manifest says of how the matrix was made: who asks the same features needs to know."""
    attribution = context.config.attribution.model_dump(mode="json")
    return {
        "fingerprint": made,
        "weights": list(plan.stores.weights),
        "scorer": attribution["scorer"],
        "options": attribution["options"],
        "pool_features": features_digest(plan.parts_K),
    }


def _propagated(scorer: Scorer, state: ArraysFile | None) -> tuple[dict[str, Any], ColumnStats | None]:
    """Return what the manifest says of a propagation, and the mean and deviation of columns, those of exact scores."""
    if state is None or not isinstance(scorer, Propagating):
        return {}, None
    arrays = state.read()
    exact_LT = arrays["exact"]
    stats = column_stats(column_moments([(np.arange(len(exact_LT)), exact_LT)]))
    return {"propagation": scorer.findings(arrays)}, stats


def group_bounds(shards: Sequence[ShardPlan], most: int = GROUPS) -> list[tuple[int, int]]:
    """Return [start, stop) of at most `most` groups of consecutive shards, as equal in number as they can be."""
    size = -(-len(shards) // most)
    return [(shards[i].start, shards[min(i + size, len(shards)) - 1].stop) for i in range(0, len(shards), size)]


def _plan(context: StepContext) -> Plan:
    from influray.data.batches import plan_shards
    from influray.model.checkpoints import load_checkpoint
    from influray.scorers.options import made_stores, make_scorer
    from influray.scorers.weights import checkpoint_weights

    cfg, directory = context.config, context.directory
    numbers = range(1, context.checkpoints + 1)
    rates = [1.0]
    if context.reads in WARMED:
        rates = [load_checkpoint(directory.checkpoint(k)).mean_learning_rate for k in numbers]
    made = {s: [require_manifest(directory.features(s, k), "featurize") for k in numbers] for s in ("target", "pool")}
    stores = made_stores(made["pool"], checkpoint_weights(cfg.attribution.weights, rates))
    parts = {split: [[part["sha256"] for part in one["parts"]] for one in found] for split, found in made.items()}
    common = {
        "scorer": cfg.attribution.scorer,
        "options": cfg.attribution.options,
        "weights": stores.weights,
        "targets": parts["target"],
        "target_catalogue": context.catalogue("target").digest,
    }
    shards = plan_shards(context.catalogue("pool").file_lengths, cfg.features.rows_per_shard)
    scorer = make_scorer(cfg.attribution.scorer, stores, cfg.attribution.options)
    start: Arrays = {}
    if isinstance(scorer, Propagating):
        start = scorer.start(context.catalogue("pool"), all_targets(context.catalogue("target")))
        common["exact"] = {name: hash_bytes(array.tobytes()) for name, array in start.items()}
    return Plan(stores, scorer, shards, parts["pool"], common, start)


def _pass_keys(context: StepContext, plan: Plan) -> list[str]:
    """Return the key of the state that each pass leaves."""
    keys: list[str] = []
    for number in range(1, plan.scorer.passes + 1):
        pool = {"parts": plan.parts_K, "catalogue": context.catalogue("pool").digest}
        groups = group_bounds(plan.shards)
        keys.append(
            context.identity(step="fit", number=number, before=keys[-1:], groups=groups, pool=pool, **plan.common)
        )
    return keys


def _fit(context: StepContext, plan: Plan, keys: list[str]) -> ArraysFile | None:
    """Run the passes that are not done yet and return the file of the last state, None where there is no pass.

    Once the last state is committed, sums and earlier states are deleted.
    """
    store = ShardStore(context.directory.fit)
    if not keys:
        return None
    final = store.valid_receipt(keys[-1])
    if final is None:
        target = _target_rows(context, len(plan.stores.weights))
        state = _start(plan, store)
        for number, key in enumerate(keys, start=1):
            if store.valid_receipt(key) is None:
                _run_pass(context, plan, store, number, key, target, state)
            final = store.receipt(key)
            assert final is not None
            state = _state_file(store, final)
    manifest = read_manifest(store.folder)
    if manifest is None or manifest["fingerprint"] != keys[-1]:
        scorer = {"scorer": context.config.attribution.scorer, "options": context.config.attribution.options}
        store.freeze(keys[-1:], {"fingerprint": keys[-1], **scorer})
    assert final is not None
    return _state_file(store, final)


def _start(plan: Plan, store: ShardStore) -> ArraysFile | None:
    """Return the file of what the first pass is given, None where that is nothing."""
    if not plan.start:
        return None
    key = fingerprint(["exact", plan.common["exact"]])
    return _state_file(store, store.valid_receipt(key) or store.commit(key, arrays_table(plan.start), {}))


def _state_file(store: ShardStore, receipt: Receipt) -> ArraysFile:
    return ArraysFile(address_of(store.folder / receipt.file), receipt.sha256)


def _run_pass(
    context: StepContext,
    plan: Plan,
    store: ShardStore,
    number: int,
    key: str,
    target: FeatureRows,
    state: ArraysFile | None,
) -> None:
    groups = [(fingerprint([key, *bounds]), *bounds) for bounds in group_bounds(plan.shards)]
    _compute(context, plan, store, groups, number=number, state=state)
    total: dict[str, np.ndarray] = {}
    for group, _, _ in groups:
        receipt = store.receipt(group)
        if receipt is not None and receipt.file:
            add_arrays(total, arrays_of(checked_table(store.folder / receipt.file, receipt.sha256)))
    if not total:
        raise DataError("score: no pool row has a feature at every checkpoint; the quarantine says why")
    before = {} if state is None else state.read()
    store.commit(key, arrays_table(plan.scorer.fit(number, total, target, before)), {"pass": number})


def _compute(
    context: StepContext,
    plan: Plan,
    store: ShardStore,
    tasks: list[tuple[str, int, int]],
    *,
    number: int = 0,
    state: ArraysFile | None = None,
) -> None:
    """Compute the shards of `tasks` (key, start, stop) that are not there; `number` is that of a pass, 0 the matrix."""
    from influray.runtime.scoring import score as compute
    from influray.runtime.tasks import ShardTask

    split = f"fit pass {number}" if number else "attribution"
    todo = [
        ShardTask(key, split, 0, start, stop, address_of(store.folder))
        for key, start, stop in tasks
        if store.valid_receipt(key) is None
    ]
    progress = context.progress.current
    progress.expect(len(tasks), "shards", done=len(tasks) - len(todo))
    compute(
        context.config.model_dump(mode="json"),
        context.directory.address,
        todo,
        context.resources,
        on_event=progress.on_event,
        on_receipt=progress.on_receipt,
        stores=plan.stores,
        number=number,
        state=state,
        features_at=context.directory.features_at,
        pool_at=context.directory.pool_at,
    )


def _target_rows(context: StepContext, checkpoints: int) -> FeatureRows:
    from influray.scorers.rows import SplitRows

    return SplitRows(context.directory, "target", checkpoints).all()


def _target_columns(context: StepContext, checkpoints: int) -> Columns:
    """Return one column per target that has a feature at every checkpoint.

    Raises:
        DataError: a task has none.
    """
    from influray.scorers.rows import SplitRows

    row_T = SplitRows(context.directory, "target", checkpoints).rows.tolist()
    known = context.catalogue("target").facts("id", "group")
    lost = sorted(set(known["group"]) - {known["group"][row] for row in row_T})
    if lost:
        raise DataError(
            f"data.targets.{lost[0]}: none of its rows has a finite feature at every checkpoint; "
            "the quarantine says why"
        )
    ids, tasks = (tuple(known[name][row] for row in row_T) for name in ("id", "group"))
    return Columns(tuple(row_T), ids, tasks)


def _stale(config: Config, directory: RunDirectory, recorded: Recorded) -> str:
    for one in propagating_scorers(config, cascade=False):
        try:
            if one.exact.digest != recorded["score"].get("exact"):
                return f"the scores of {one.exact.place} have changed"
        except (ConfigError, ArtifactMismatch) as error:
            return str(error)
    return ""


def _describe(config: Config) -> str:
    return f"{config.attribution.scorer}, weights {config.attribution.weights}"


SCORE = Step("score", score, ("attribution",), _describe, _stale)
