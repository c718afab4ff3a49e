"""What runs inside the actors that make features.

A worker loads its base model once, changes adapters when the checkpoint changes, and commits each shard itself, while
it computes the next one. What it computes depends on the shard alone, never on the shards before it or on who else is
working.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ray

from influray.config import Config, parse_config
from influray.protocols import ConfigError, FeatureBlock, Featurizer
from influray.registry import WARMED, featurizer_reads, make
from influray.runtime.cluster import ResolvedResources
from influray.runtime.poison import ROW_REASON
from influray.runtime.process import import_large, logged, prepare_process, process_name
from influray.runtime.shards import WRITER, ShardPool
from influray.runtime.tasks import Attempt, Computed, PoolEvent, PoolReport, ShardTask, WorkerInfo
from influray.store.artifact import Receipt, ShardStore
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue
    from influray.store.datastore import PartBuilder

logger = logging.getLogger(__name__)

POOL = "pool"


def featurize(
    config: dict[str, Any],
    run_dir: str | Path,
    todo: Sequence[ShardTask],
    resources: ResolvedResources,
    on_event: Callable[[PoolEvent], None] = lambda event: None,
    on_receipt: Callable[[ShardTask, Receipt], None] = lambda task, receipt: None,
    *,
    token_budget: int | None = None,
    pool_at: str = "",
) -> PoolReport:
    """Compute the feature shards of `todo` (splits pool and target, any checkpoints) and return their receipts.

    `config` is the run's, as plain data; `run_dir` holds its catalogues and warmup checkpoints: a path that every
    worker sees, or a URI; `pool_at` is where within it the pool lies. `token_budget` is what shards made before had;
    None lets the first worker find one. The receipts are in the order of checkpoints, splits and rows. Raises as
    `ShardPool.run`.
    """
    # In this order a worker changes its adapter as seldom as it can.
    ordered = sorted(todo, key=lambda task: (task.checkpoint, task.split, task.start))
    reads = featurizer_reads(config["features"]["featurizer"])
    gpus = 0.0 if reads == "records" else resources.gpus_per_worker
    arguments = (config, str(run_dir), token_budget, pool_at)
    lower = f"features.token_budget (now {token_budget or config['features']['token_budget']})"
    with ShardPool(FeatureWorker, arguments, resources, gpus, lower=lower, isolate=True) as pool:
        return pool.run(ordered, on_receipt, on_event)


@dataclass(frozen=True, slots=True)
class _Unwritten:
    """A computed shard."""

    store: ShardStore
    part: PartBuilder
    details: dict[str, Any]


class FeatureWorker:
    """Feature rows of shards. Gradients: pool rows along `features.direction`, target rows along the plain one.

    The constructor only keeps its arguments: Ray rewraps what it raises, while errors of `ready` arrive as they are.
    """

    def __init__(
        self,
        config: dict[str, Any],
        run_dir: str,
        token_budget: int | None = None,
        pool_at: str = "",
        threads: int = 1,
    ) -> None:
        self._plain_config = config
        self._directory = RunDirectory(run_dir, pool_at=pool_at)
        self._token_budget = token_budget
        self._threads = threads
        self._catalogues: dict[str, Catalogue] = {}
        self._checkpoint = 0  # whose adapter is on the model; 0 = none yet
        self._split = ""  # which the featurizer is for
        self._featurizer: Featurizer | None = None
        self._unwritten: dict[str, _Unwritten] = {}  # by key

    def ready(self) -> WorkerInfo:
        """Load the base model, where the features are made from it, and return what this worker is."""
        name = prepare_process(self._directory.logs, self._threads)
        self._config: Config = parse_config(self._plain_config)
        self._reads = featurizer_reads(self._config.features.featurizer)
        if self._reads == "records":
            return WorkerInfo(name)
        import_large("peft" if self._reads in WARMED else "transformers.models.auto.modeling_auto")
        from influray.model.loading import load_base  # with torch: a worker without a model is up in half the time

        device = prepare_torch(self._threads)
        device_map = self._config.resources.device_map if device != "cpu" else None
        self._model: Any = load_base(self._config.model, device=device, device_map=device_map)
        self._device = device
        if self._token_budget is None:
            self._token_budget = self._find_token_budget()
        logger.info("ready on %s, %d padded tokens a batch", device, self._token_budget)
        return WorkerInfo(name, device, self._token_budget)

    def _find_token_budget(self) -> int:
        from influray.features.token_budget import resolve_token_budget

        def compute(batch: Sequence[Any]) -> object:
            # Of the pool, whose direction takes the most memory; at the first checkpoint, as good as any.
            return trial(self._featurizer_for(POOL, 1), self._config.features.packing, batch)

        limits = self._config.features.token_budget, self._config.data.max_tokens
        return resolve_token_budget(limits[0], self._model, self._device, limits[1], compute)

    def compute(self, task: ShardTask, attempt: Attempt) -> Receipt | Computed | None:
        """Compute a shard for `commit` and return that it is; where it has a receipt already, that. None after a probe.

        What does not fit into memory is computed again in batches of half the size, and the receipt says so.

        Raises:
            ConfigError, DataError, ArtifactMismatch: what the user can mend.
            RuntimeError: a row alone does not fit.
        """
        store = ShardStore(task.folder)
        committed = store.receipt(task.key)
        if committed is not None:
            return committed
        budget, whole = attempt.token_budget or self._token_budget, True
        while True:
            try:
                with logged((task, attempt)):
                    made = self._compute(store, task, budget, attempt, shrunk=not whole)
            except (RuntimeError, MemoryError) as error:
                if budget is None or not _out_of_memory(error):
                    raise
                message = f"{type(error).__name__}: {error}".splitlines()[0]
            else:
                if made is None:
                    return None
                self._unwritten[task.key] = made
                return Computed()
            # Outside the except block: until here the traceback held the tensors of the batch.
            _free_memory()
            examples = self._catalogue(task.split).tokenized(task.start, task.stop)
            batches = _batches(examples, budget, (), self._config.features.packing, self._featurizer)
            if all(sum(map(len, batch)) == 1 for batch in batches):
                raise RuntimeError(f"{message} (token budget {budget})")
            budget, whole = budget // 2, False
            logger.warning("%s does not fit: %s; again with a token budget of %d", task, message, budget)

    def _compute(
        self, store: ShardStore, task: ShardTask, token_budget: int | None, attempt: Attempt, shrunk: bool
    ) -> _Unwritten | None:
        from influray.data.batches import batch_tokens
        from influray.store.datastore import PartBuilder

        started = time.perf_counter()
        featurizer = self._featurizer_for(task.split, task.checkpoint)
        first, stop = attempt.probe or (task.start, task.stop)
        catalogue = self._catalogue(task.split)
        examples: list[Any]
        examples = catalogue.texts(first, stop) if token_budget is None else catalogue.tokenized(first, stop)
        packing, lengths = self._config.features.packing, [example.tokens for example in examples]
        batches = _batches(examples, token_budget, attempt.without, packing, featurizer)
        encoding = self._config.features.store if task.split == POOL else "float16"
        failures: dict[str, str] = {}
        with contextlib.ExitStack() as unless_made:
            part = unless_made.enter_context(PartBuilder(featurizer.dimension, encoding))
            stacks = [[[examples[i] for i in stack] for stack in batch] for batch in batches]
            for block in featurizer.compute_all_packed(stacks):
                if broken := featurizer.broken_promise(block):
                    raise ConfigError(f"features.featurizer: {broken}")
                part.add(block)
                failures |= {str(row): reason for row, reason in sorted(block.failures.items())}
            if attempt.probe is not None:
                return None
            unless_made.pop_all()  # `commit` ends the part
        failures |= {str(row): ROW_REASON for row in attempt.without}
        details = {
            "failures": failures,  # row -> reason; keys are text since JSON has no others
            "seconds": round(time.perf_counter() - started, 4),
            "rows": len(examples),
            "tokens": sum(lengths),
            "dimension": featurizer.dimension,
            "epsilon_share": featurizer.epsilon_share,
            "step": featurizer.step,
            "bounds": featurizer.bounds or (0, featurizer.dimension),
            "factors": featurizer.factors,
            "token_budget": token_budget,
            "packed": any(len(batch) > 1 for batch in batches),
            "batch_tokens": batch_tokens(lengths, batches) if token_budget is not None else None,  # with padding
            "shrunk": shrunk,  # a larger budget did not fit into memory
            "without": list(attempt.without),  # rows that were not in the batches of the others
            "worker": process_name(),
        }
        return _Unwritten(store, part, details)

    @ray.method(concurrency_group=WRITER)
    def commit(self, key: str) -> Receipt:
        """Commit a computed shard and return its receipt; where it has one already, that. It is forgotten either way.

        Raises what encoding its rows raised, and as `ShardStore.commit`.
        """
        shard = self._unwritten.pop(key)
        with logged(f"writing {key[:16]}"), shard.part as part:
            table = part.table()
            return shard.store.commit(key, table if table is not None and table.num_rows else None, shard.details)

    def _catalogue(self, split: str) -> Catalogue:
        from influray.data.catalogue import Catalogue

        if split not in self._catalogues:
            self._catalogues[split] = Catalogue(self._directory.data(split))
        return self._catalogues[split]

    def _featurizer_for(self, split: str, number: int) -> Featurizer:
        features = self._config.features
        if self._featurizer is not None and (
            self._reads not in WARMED or (self._checkpoint, self._split) == (number, split)
        ):
            return self._featurizer
        name, options = features.featurizer, features.options
        if self._reads not in WARMED:
            model = () if self._reads == "records" else (self._model, self._device)
            self._featurizer = make("featurizers", name, options, *model)
            assert self._featurizer is not None
            return self._featurizer
        from influray.model.checkpoints import load_checkpoint
        from influray.model.loading import attach_adapter, swap_adapter

        self._release_featurizer()
        checkpoint = load_checkpoint(self._directory.checkpoint(number))
        if self._checkpoint != number:
            put_on = swap_adapter if self._checkpoint else attach_adapter
            self._model = put_on(self._model, checkpoint.adapter)
            self._checkpoint = number
        given: tuple[Any, ...] = self._model, self._device
        if self._reads == "checkpoints":
            features, direction = features.at(number), features.direction if split == POOL else "sgd"
            moments = checkpoint.moments() if direction == "adam" else None
            given = self._model, features, moments, direction, self._device
        self._featurizer = make("featurizers", name, options, *given)
        self._split = split
        assert self._featurizer is not None
        return self._featurizer

    def _release_featurizer(self) -> None:
        """Drop the featurizer with its hooks on the model and its projection."""
        before, self._featurizer, self._split = self._featurizer, None, ""
        if before is not None:
            before.close()
        _free_memory()


def prepare_torch(threads: int) -> str:
    """Make torch deterministic and return the device."""
    import torch

    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]  costs time, changes no result
    if not ray.get_gpu_ids():
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigError(
            f"resources.gpus_per_worker: this worker was given a GPU that PyTorch {torch.__version__} cannot use "
            "(a build without CUDA, or a driver too old for it); install a fitting one, or set it to 0"
        )
    return "cuda:0"


def _out_of_memory(error: BaseException) -> bool:
    import torch

    text = str(error).lower()
    return (
        isinstance(error, MemoryError | torch.OutOfMemoryError)
        or "out of memory" in text
        or "can't allocate memory" in text  # torch on CPU
    )


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _batches(
    examples: Sequence[Any],
    token_budget: int | None,
    without: Sequence[int],
    packing: Literal["auto", "on", "off"],
    featurizer: Featurizer | None,
) -> list[list[list[int]]]:
    """Return the batches of a shard's examples, as stacks of indices; without a token budget, so without a model, one.

    Rows of `without` are taken out of the batches that all rows make: the other batches are what they would be, and
    of its own batch each row depends on the others by rounding alone.
    """
    from influray.data.batches import plan_stacks

    def can_pack() -> bool:
        return featurizer is not None and featurizer.can_pack()

    batches = [[list(range(len(examples)))]]
    if token_budget is not None:
        batches = plan_stacks([e.tokens for e in examples], token_budget, packing, can_pack)
    gone = set(without)
    kept = [[[i for i in stack if examples[i].row not in gone] for stack in batch] for batch in batches]
    return [stacks for batch in kept if (stacks := [stack for stack in batch if stack])]


def trial(featurizer: Featurizer, packing: Literal["auto", "on", "off"], batch: Sequence[Any]) -> FeatureBlock:
    """Compute a batch in the way that takes most memory of those that shards may take: packed, if at all."""
    half = len(batch) // 2
    packed = half > 0 and packing != "off" and featurizer.can_pack()
    (block,) = featurizer.compute_all_packed([[list(batch[:half]), list(batch[half:])] if packed else [list(batch)]])
    return block
