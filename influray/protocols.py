"""The seams of influray and the values that cross them.

Everything that can be swapped is a class of one of four bases: a Featurizer turns a batch into one row per example, a
Projector maps gradient coordinates to D numbers, a Scorer turns features into blocks of the attribution matrix, a
Selector turns the matrix into a selection. A class of one's own derives from one of them and overrides what is
abstract. All parameters of its __init__ after those that the base names are its options (influray.options).

Shape suffixes: N pool rows, T target columns, B batch, S tokens, P parameters, D feature, K checkpoints.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class ConfigError(ValueError):
    """A config that cannot be run: names the dotted key, what was found, what would be right."""


class DataError(ValueError):
    """Data that cannot be used: names file and line, what was found, what would be right."""


class ArtifactMismatch(RuntimeError):
    """An artifact on disk that cannot serve the request: names the artifact and the one that is needed."""


class DamagedArtifact(ArtifactMismatch):
    """A file that is no longer what was committed. Running the step that made it makes it again; the pipeline does.

    `address` names it on every machine (store.mirror.address_of), "" where no file alone can be named.
    """

    def __init__(self, message: str, address: str = "") -> None:
        super().__init__(message)
        self.address = address


class StorageError(RuntimeError):
    """Object storage that does not answer: names the object and what to do. Nothing is lost; try again later."""


class RunStopped(RuntimeError):
    """A run that cannot go on although nothing is wrong with it: its cluster or its run directory was taken from it.

    Nothing that is committed is lost; the same command goes on.
    """


USER_ERRORS = (ConfigError, DataError, ArtifactMismatch)


@dataclass(frozen=True, slots=True)
class TokenizedExample:
    """One catalogue row as the model sees it.

    `loss_mask_S[s]` says that token s is a trained label, predicted from the tokens before it; position 0
    has none, so `loss_mask_S[0]` is always False and `loss_tokens` is the plain sum.
    """

    row: int
    input_ids_S: np.ndarray  # int32
    loss_mask_S: np.ndarray  # bool

    @property
    def tokens(self) -> int:
        return len(self.input_ids_S)

    @property
    def loss_tokens(self) -> int:
        return int(self.loss_mask_S.sum())


@dataclass(frozen=True, slots=True)
class TextExample:
    """One catalogue row as people read it: what users and assistants say, a line break between turns.

    The text is whole; `tokens` and `loss_tokens` are counted after truncation, as the model sees the row.
    """

    row: int
    text: str
    tokens: int
    loss_tokens: int


@dataclass(frozen=True, slots=True)
class SparseRows:
    """Rows of counts over buckets: row b has the entries [offset[b], offset[b + 1]), buckets ascending in it."""

    offset: np.ndarray  # [B + 1], int32 on disk
    bucket: np.ndarray  # int32
    count: np.ndarray  # int32, 1 or more


Reads = Literal["checkpoints", "adapters", "base", "records"]
Makes = Literal["vectors", "counts", "facts"]


@dataclass(frozen=True, slots=True)
class FeatureBlock:
    """One feature row per usable example of a batch, in the order of `row_B`, and why the others failed.

    A column that is None is one that datastores of this featurizer do not have.
    """

    row_B: np.ndarray  # int64, catalogue rows
    feature_BD: np.ndarray | None  # float16, unit rows
    norm_B: np.ndarray | None  # float32, L2 norm of the row before it was made a unit (of the projected gradient)
    grad_norm_B: np.ndarray | None  # float32, L2 norm of the plain, unprojected gradient
    loss_B: np.ndarray | None  # float32, mean over the trained tokens
    loss_tokens_B: np.ndarray  # int32
    failures: Mapping[int, str] = field(default_factory=dict)  # row -> reason, for the quarantine
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)  # further columns of one number a row: tokens ...
    counts: SparseRows | None = None  # of n-grams

    @property
    def makes(self) -> Makes:
        """What stands for a row, beside its plain columns."""
        return "vectors" if self.feature_BD is not None else "counts" if self.counts is not None else "facts"

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The plain columns by name."""
        known = {"norm": self.norm_B, "grad_norm": self.grad_norm_B, "loss": self.loss_B, **self.extra}
        return {name: column_B for name, column_B in known.items() if column_B is not None}


class Projector(ABC):
    """A fixed random linear map R [P, D], unbiased: E[(x R) . (y R)] = x . y.

    It is made as `kind(dimension, parameters, seed, device, **options)`, and applied in slices of coordinates so that
    a caller never holds a whole gradient. The result of a row depends on that row alone, whatever else is in the batch.
    """

    dimension: int  # D

    @abstractmethod
    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""


class FactorProjector(Projector):
    """A projector that can do without the gradient: sum_s grad_s x_s' of a linear layer comes as its two factors."""

    @abstractmethod
    def set_layout(self, shapes: Sequence[tuple[int, int, int]]) -> None:
        """Say what the coordinates are: (offset, out, in) of every weight."""

    @abstractmethod
    def result_shape(self, offset: int) -> tuple[int, int]:
        """Return (rows, columns) of the matrix that the weight at `offset` comes to; (1, D) where it is none."""

    @abstractmethod
    def add_factors(self, out_BD: Tensor, offset: int, grad_BSo: Tensor, x_BSi: Tensor) -> None:
        """Add the projection of sum_s grad_s x_s', the gradient of the weight at `offset`, to `out_BD`, in place."""


@dataclass(frozen=True, slots=True)
class Traits:
    """What must be known of a featurizer before it is made; the class attributes of the same names."""

    reads: Reads
    makes: Makes
    columns: tuple[str, ...]


class Featurizer(ABC):
    """One batch of examples -> one feature row per example.

    `reads` says what it is made from, and so how it is constructed, options after that, and what it is given:
    "checkpoints" the base with each warmup adapter in turn, `(model, features_config, moments, direction, device)`;
    "adapters" the same without what a gradient takes, `(model, device)`; "base" the base alone, `(model, device)`, and
    there is no warmup; "records" no model, `()`, and TextExamples in place of TokenizedExamples.
    """

    reads: ClassVar[Reads] = "checkpoints"
    makes: ClassVar[Makes] = "vectors"  # unit rows; counts of n-grams; or facts: nothing but the plain columns
    columns: ClassVar[tuple[str, ...]] = ()  # plain ones beside loss_tokens: norm, grad_norm, loss and those of `extra`
    dimension: int  # D of its feature rows, buckets of its counts, 0 where it has neither
    epsilon_share: float | None = None  # how much of Adam's denominator is epsilon; None where there is no Adam
    step: str | None = None  # which of several programs with other last bits computes
    bounds: tuple[int, ...] = ()  # where the part of the D numbers of each module begins, and D; () = one part
    factors: tuple[tuple[int, int, int], ...] = ()  # (first of the D numbers, rows, columns) of each weight's matrix

    @abstractmethod
    def compute(self, examples: Sequence[Any]) -> FeatureBlock:
        """Return the rows of one batch in its order; those that have no usable feature are in `failures`."""

    def broken_promise(self, block: FeatureBlock) -> str:
        """Return how a block is not what the class attributes say, "" where it is."""
        given, said = (block.makes, sorted(block.columns)), (self.makes, sorted(self.columns))
        text = "makes = {!r} and columns = {}"
        kind = f"{type(self).__module__}:{type(self).__qualname__}"
        return "" if given == said else f"{kind} gives {text.format(*given)}, and says {text.format(*said)}"

    def compute_all(self, batches: Iterable[Sequence[Any]]) -> Iterator[FeatureBlock]:
        """Yield what `compute` returns for each batch of a shard, in order; one may begin before the last is done."""
        return map(self.compute, batches)

    def can_pack(self) -> bool:
        """Return whether a batch may be several stacks of examples, each padded for itself."""
        return False

    def compute_all_packed(self, batches: Iterable[Sequence[Sequence[Any]]]) -> Iterator[FeatureBlock]:
        """Yield for each batch of stacks, of one where it cannot pack, what `compute` returns, to rounding."""
        return self.compute_all(stack for (stack,) in batches)

    def close(self) -> None:  # noqa: B027 - there need be nothing to close
        """Let go of the model, so that another adapter can be put on it."""


@dataclass(frozen=True, slots=True)
class Stores:
    """What the datastores of a run are: what a scorer is made for, known before a row of them is read."""

    weights: tuple[float, ...]  # one per checkpoint, summing to 1; () before their number is known
    featurizer: str = "gradient"
    makes: Makes = "vectors"
    columns: tuple[str, ...] = ("norm", "grad_norm", "loss")  # as of Featurizer
    direction: str = "adam"  # of the gradients of pool rows: adam, sgd or sign; those of target rows are always plain
    blocks: str = "whole"  # module = a part of the D numbers for each LoRA module
    matrices: str = "one"  # of the projection: one for all checkpoints, or each its own
    bounds_K: tuple[tuple[int, ...], ...] = ()  # per checkpoint: where parts begin, and D or buckets; () = not made yet
    projector: str = ""  # its name
    factors_K: tuple[tuple[tuple[int, int, int], ...], ...] = ()  # per checkpoint: factors as of Featurizer
    tasks_K: tuple[tuple[str, ...], ...] = ()  # tasks whose targets each adapter saw, none = the base; () = the pool's


@dataclass(frozen=True, slots=True)
class FeatureRows:
    """Rows of one split that have a feature at all K checkpoints, ascending, as the datastores hold them."""

    row_B: np.ndarray  # int64, catalogue rows
    group_B: Sequence[str]  # the task of target rows, the source of pool rows
    feature_KBD: Sequence[np.ndarray]  # float16, unit rows; may be read-only maps; () where there are no vectors
    facts_KB: Sequence[Mapping[str, np.ndarray]]  # the other columns: norm, grad_norm, loss, loss_tokens ...
    counts: SparseRows | None = None  # of n-grams, where the datastores hold them

    def __len__(self) -> int:
        return len(self.row_B)


@dataclass(frozen=True, slots=True)
class Columns:
    """What the columns of the attribution matrix stand for, in order."""

    rows: tuple[int, ...]  # the target's catalogue row; -1 where a column is not one target's
    ids: tuple[str, ...]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.rows)


Arrays = Mapping[str, np.ndarray]


class Scorer(ABC):
    """Features of pool and targets at every checkpoint -> a block of the attribution matrix.

    It is made as `kind(stores, **options)` and raises ArtifactMismatch for stores that it has no use for. This happens
    twice: before anything starts, with the stores that the config will make, and before scoring, with those that are
    there.

    A scorer that needs to know the whole pool first has `passes`. In each, numbered from 1, `sums` is taken of blocks
    of pool rows and added up in a fixed order, and `fit` turns the total into the state that the next pass and `score`
    are given; it is kept on disk.
    """

    passes: ClassVar[int] = 0

    def columns(self, targets: Columns) -> Columns:
        """Return what the columns of the matrix are, from the targets that have a feature at every checkpoint."""
        return targets

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return named sums over the rows of `pool` (one at least), float64; blocks may differ in the names they have.

        `state` is what the pass before has left, empty in the first.
        """
        raise NotImplementedError(f"{type(self).__name__} has {self.passes} passes and no sums")

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return the state that follows from the sums over all pool rows: arrays by name, none of them empty."""
        raise NotImplementedError(f"{type(self).__name__} has {self.passes} passes and no fit")

    @abstractmethod
    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32, one column as `columns` has them; larger helps more. The last pass left `state`."""


class AttributionSource(Protocol):
    """The attribution matrix, in memory or on disk, read in blocks of ascending rows."""

    @property
    def shape(self) -> tuple[int, int]: ...

    @property
    def rows(self) -> np.ndarray:
        """The row numbers, int64 [N], ascending."""
        ...

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (row_B int64, A_BT), rows ascending over all blocks. Arrays may be read-only maps."""
        ...

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the lines of these row numbers in the order given, [len(rows), T], of the dtype of `blocks`."""
        ...


class UnitRows(Protocol):
    """Feature rows whose inner products are cosines, by row number."""

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the unit rows of these row numbers in the order given, [len(rows), D] float32."""
        ...


Bounds = tuple[int, int | None]  # the least and the most rows; None = no most


@dataclass(frozen=True)
class Limits:
    """The constraints of a selection besides its number of examples."""

    tokens: int | None = None  # the most, over all chosen rows
    include: tuple[str, ...] = ()  # ids
    exclude: tuple[str, ...] = ()  # ids
    sources: Mapping[str, Bounds] = field(default_factory=dict)
    tasks: Mapping[str, Bounds] = field(default_factory=dict)  # a row is of the task of its highest standardised column
    near_duplicates: float | None = None  # cosine to a chosen row from which a row is left out


@dataclass(frozen=True)
class RoleLimit:
    """A task to protect or to avoid, whose columns no selector sees; `z_N` is each row's mean standardised influence.

    Its sum over the rows chosen so far is never below 0 for a task to protect, never above 0 for one to avoid.
    """

    task: str
    role: str
    z_N: np.ndarray  # float64


@dataclass(frozen=True)
class SelectionProblem:
    """What every selector is given.

    `rows` are the row numbers of `attribution` in order; `facts` hold per-row columns in the same order
    (source, tokens, id ...) for the methods and reports that read them.
    """

    attribution: AttributionSource
    groups: tuple[str, ...]  # the task of each column
    budget: int  # examples; with `limits.tokens` the most there can be
    seed: int = 0
    facts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    limits: Limits = Limits()
    features: UnitRows | None = None  # for limits.near_duplicates, and selectors that need them
    on_progress: Callable[[int, int], None] = lambda chosen, budget: None  # called now and then by a greedy method
    passed_over: tuple[int, ...] = ()  # positions that near-duplicates rule out: with them a minimum could not be kept
    role_limits: tuple[RoleLimit, ...] = ()  # of the tasks that are not sought, whose columns `attribution` has not


@dataclass(frozen=True)
class Selection:
    """Chosen rows in order of choice; n = the budget, or as many as a budget in tokens holds.

    `rows` int64 [n] without repeats; `merit` float64 [n], the utility each had when chosen (NaN where a method has
    none); `column` int64 [n], the target column that won it (-1 where none did). `dropped_columns` names the columns
    that no standardised score can use, and why: they hold a NaN or an infinity, or are constant.
    """

    rows: np.ndarray
    merit: np.ndarray
    column: np.ndarray
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    dropped_columns: Mapping[int, str] = field(default_factory=dict)


class Selector(ABC):
    """Attribution -> selection: a pure function of the problem and its seed. It is made as `kind(**options)`."""

    needs_features: bool = False  # reads `problem.features`; it may depend on the options

    @abstractmethod
    def select(self, problem: SelectionProblem) -> Selection:
        """Return `problem.budget` different rows in order of choice."""
