"""score: the attribution matrix, from the committed datastores of all checkpoints."""

from __future__ import annotations

from typing import Any

from influray.protocols import DataError
from influray.steps.context import StepContext, StepResult
from influray.store.artifact import ShardStore, fingerprint, read_manifest, require_manifest


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


def _target_rows(context: StepContext, checkpoints: range) -> Any:
    from influray.runtime.workers import valid_rows
    from influray.store.datastore import Datastore

    return valid_rows([Datastore(context.directory.features("target", k)) for k in checkpoints])


def _require_columns(group_of_row: list[str], row_T: Any) -> None:
    lost = sorted(set(group_of_row) - {group_of_row[row] for row in row_T})
    if lost:
        raise DataError(
            f"data.targets.{lost[0]}: none of its rows has a finite feature at every checkpoint; "
            "the quarantine says why"
        )
