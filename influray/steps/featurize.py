"""featurize: which shards exist already, which are to be computed, and what their failures mean.

A shard's key holds all that its bytes depend on, which for gradients is base, checkpoint, projector, direction and
the tokens of its rows. So a file added to the pool, or a new target, brings only shards of its own.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from influray.config import Config
from influray.features.epsilon_share import epsilon_text
from influray.protocols import DataError
from influray.registry import featurizer_reads, featurizer_traits
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Step
from influray.steps.subject import require_unfitted
from influray.store.artifact import ShardStore, fingerprint, read_manifest, require_manifest
from influray.store.checks import broken
from influray.store.mirror import address_of
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureStore:
    """The datastore of one split at one checkpoint, as it should be."""

    directory: RunDirectory
    split: str
    checkpoint: int
    shards: tuple[tuple[str, int, int], ...]  # (key, start, stop)
    catalogue: Catalogue
    facts: dict[str, Any]  # of the manifest

    @cached_property
    def store(self) -> ShardStore:
        return ShardStore(self.directory.features(self.split, self.checkpoint))

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint([key for key, _, _ in self.shards])

    def missing(self) -> list[tuple[str, int, int]]:
        """Return the shards that are not there; none where the manifest is the right one and its files are there."""
        if self._committed() is not None:
            return []
        return [shard for shard in self.shards if self.store.valid_receipt(shard[0]) is None]

    def freeze(self) -> dict[str, Any]:
        """Commit the datastore over its shards, unless it is, and return its manifest."""
        manifest = self._committed()
        if manifest is not None:
            return manifest
        details = self._details()
        budgets = sorted({found["token_budget"] for found in details if not found["shrunk"]})
        steps = {found.get("step") for found in details}  # one worker may have had triton and another not
        shares = [found["epsilon_share"] for found in details if found["epsilon_share"] is not None]
        facts = {
            **self.facts,
            "dimension": details[0]["dimension"],
            "fingerprint": self.fingerprint,
            "split": self.split,
            "checkpoint": self.checkpoint,
            "token_budget": budgets[0] if len(budgets) == 1 else budgets,
            "epsilon_share": shares[0] if shares else None,
            "bounds": details[0]["bounds"],
            "factors": details[0].get("factors", []),  # shards of earlier versions have none
            # A row that killed its process might live on another machine, and then share a batch with others.
            "byte_reproducible": len(budgets) <= 1
            and len(steps) == 1
            and not any(f["shrunk"] or f["without"] for f in details),
            "failures": {row: reason for found in details for row, reason in found["failures"].items()},
        }
        return self.store.freeze([key for key, _, _ in self.shards], facts)

    def _committed(self) -> dict[str, Any] | None:
        """Return the manifest where it is the right one and its files are what was committed."""
        manifest = read_manifest(self.store.folder)
        if manifest is None or manifest["fingerprint"] != self.fingerprint:
            return None
        if torn := broken(self.store.folder, manifest):
            logger.warning("%s: %d files are damaged and made again: %s", self.store.folder, len(torn), torn[0])
            return None
        return manifest

    def _details(self) -> list[dict[str, Any]]:
        receipts = [self.store.receipt(key) for key, _, _ in self.shards]
        return [dict(receipt.details) for receipt in receipts if receipt is not None]


def featurize(context: StepContext) -> StepResult:
    """Compute the feature rows of targets and pool at every checkpoint; only shards that are not there yet."""
    stores = plan(context)
    missing = [(store, shard) for store in stores for shard in store.missing()]
    if missing:
        from influray.runtime.tasks import ShardTask
        from influray.runtime.workers import featurize as compute

        todo = [
            ShardTask(key, store.split, store.checkpoint, start, stop, address_of(store.store.folder))
            for store, (key, start, stop) in missing
        ]
        progress = context.progress.current
        shards = sum(len(store.shards) for store in stores)
        progress.expect(shards, "shards", done=shards - len(todo))
        compute(
            context.config.model_dump(mode="json"),
            context.directory.address,
            todo,
            context.resources,
            on_event=progress.on_event,
            on_receipt=progress.on_receipt,
            token_budget=recorded_budget(stores),
            pool_at=context.directory.pool_at,
        )
    manifests = [store.freeze() for store in stores]
    shares = [m["epsilon_share"] for m in manifests if m["split"] == "pool"]
    known = [share for share in shares if share is not None]
    if missing and known:
        logger.info("featurize: %s", epsilon_text(known, context.config))
    return StepResult(
        fingerprint([store.fingerprint for store in stores]),
        skipped=not missing,
        facts={
            "rows": sum(stop - start for _, (_, start, stop) in missing),
            "tokens": sum(_detail(store.store, key, "tokens") for store, (key, _, _) in missing),
            "shards": len(missing),
            "checkpoints": context.checkpoints,
            "failed_rows": quarantine_failures(context, stores),
            "epsilon_share": shares,
            "token_budget": manifests[-1]["token_budget"],
            "threads_per_worker": context.config.resources.threads_per_worker,
            "byte_reproducible": all(manifest["byte_reproducible"] for manifest in manifests),
        },
        artifacts=[f"features/{one.split}/checkpoint-{one.checkpoint}/manifest.json" for one in stores],
    )


def plan(context: StepContext) -> list[FeatureStore]:
    """Return the datastores of the run in the order in which workers should make them.

    Raises:
        ConfigError: as `require_unfitted`.
    """
    from influray.data.batches import plan_shards

    require_unfitted(context.config)
    splits = {}
    for split in ("target", "pool"):
        catalogue = context.catalogue(split)
        shards = plan_shards(catalogue.file_lengths, context.config.features.rows_per_shard)
        splits[split] = catalogue, [(s.start, s.stop, _content(context, catalogue, s.start, s.stop)) for s in shards]
    stores = []
    for number in range(1, context.checkpoints + 1):
        for split, (catalogue, shards) in splits.items():
            facts, common = _made_from(context, split, number)
            keyed = tuple(
                (context.identity(step="featurize", **common, start=start, stop=stop, content=content), start, stop)
                for start, stop, content in shards
            )
            stores.append(FeatureStore(context.directory, split, number, keyed, catalogue, facts))
    return stores


def recorded_budget(stores: list[FeatureStore]) -> int | None:
    """Return the token budget of the shards that are there; a resumed run keeps it, on whatever hardware it goes on."""
    for store in stores:
        for key, _, _ in store.shards:
            receipt = store.store.receipt(key)
            if receipt is not None and not receipt.details["shrunk"] and receipt.details["token_budget"] is not None:
                return int(receipt.details["token_budget"])
    return None


def _content(context: StepContext, catalogue: Catalogue, start: int, stop: int) -> Any:
    tokens = catalogue.content_digest(start, stop)
    # The same tokens may stand for other text: templates trim, and long rows are cut.
    return [tokens, catalogue.record_digest(start, stop)] if context.reads == "records" else tokens


def _made_from(context: StepContext, split: str, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a datastore's manifest says of its making, and what the keys of its shards hold but their rows."""
    features, model = context.config.features, context.config.model
    facts: dict[str, Any] = {"featurizer": features.featurizer, "options": features.options}
    if context.reads == "records":
        return facts, facts
    facts["dtype"] = model.dtype
    common = {
        "base": context.model_digest,
        "model": model.model_dump(mode="json", include={"dtype", "attention", "quantization"}),
    }
    if featurizer_traits(features.featurizer).makes == "vectors":
        facts["store"] = features.store if split == "pool" else "float16"
    if context.reads == "base":
        return facts, {**facts, **common, "token_budget": features.token_budget}
    from influray.model.checkpoints import load_checkpoint

    checkpoint = load_checkpoint(context.directory.checkpoint(number)).digest
    if context.reads == "adapters":
        tasks_K = require_manifest(context.directory.warmup, "warmup").get("tasks", ())
        facts |= {"tasks": tasks_K[number - 1]} if tasks_K else {}
        return facts, {**facts, **common, "checkpoint": checkpoint, "token_budget": features.token_budget}
    facts["direction"] = features.direction if split == "pool" else "sgd"
    facts["blocks"] = features.blocks
    facts["projector"] = features.projector.model_dump(mode="json")
    apart = {"rows_per_shard", "direction", "store"}
    if features.layers == "all":  # rows of before there was a choice stay what they are
        apart.add("layers")
    else:
        facts["layers"] = features.layers
    return facts, {
        **common,
        "checkpoint": checkpoint,
        "features": features.at(number).model_dump(mode="json", exclude=apart),
        "direction": facts["direction"],
        "store": facts.get("store"),
    }


def quarantine_failures(context: StepContext, stores: list[FeatureStore]) -> int:
    """Write the rows that failed to the quarantine and return how many pool rows did at some checkpoint.

    Raises:
        DataError: with those that could not be read they are more than `data.max_bad_fraction` of a split.
    """
    from influray.data.quarantine import entry, read_quarantine, write_quarantine

    path = context.directory.quarantine_path
    failed: dict[str, dict[int, str]] = {"target": {}, "pool": {}}
    for store in stores:
        entries = []
        for text, reason in sorted(store.freeze()["failures"].items(), key=lambda item: int(item[0])):
            row = int(text)
            place = {name: store.catalogue.cell(row, name) for name in ("file", "line", "id")}
            entries.append(entry(store.split, "featurize", reason, **place, row=row, checkpoint=store.checkpoint))
            failed[store.split][row] = reason
        write_quarantine(path, store.split, "featurize", entries, checkpoint=store.checkpoint)
    unread = [found["split"] for found in read_quarantine(path) if found["stage"] != "featurize"]
    limit = context.config.data.max_bad_fraction
    for split, rows in failed.items():
        total = len(context.catalogue(split)) + unread.count(split)
        bad = len(rows) + unread.count(split)
        if rows and bad > limit * total:
            row, reason = min(rows.items())
            raise DataError(
                f"data: {bad} of {total} rows of the {split} cannot be used, more than data.max_bad_fraction = {limit} "
                f"allows; {len(rows)} of them for their feature, the first is row {row}: {reason}; see {path}"
            )
    return len(failed["pool"])


def _detail(store: ShardStore, key: str, name: str) -> int:
    receipt = store.receipt(key)
    return 0 if receipt is None else int(receipt.details[name])


def _describe(config: Config) -> str:
    features, projector = config.features, config.features.projector
    if featurizer_reads(features.featurizer) != "checkpoints":
        return features.featurizer
    return f"{features.featurizer}, {features.direction}, {projector.name} {projector.dimension}"


FEATURIZE = Step("featurize", featurize, ("features",), _describe)
