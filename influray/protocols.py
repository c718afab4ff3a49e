"""The seams of influray and the values that cross them.

Everything that can be swapped stands here as a protocol: a Featurizer turns a batch into one row per
example, a Projector maps gradient coordinates to D numbers, a Scorer turns features into blocks of the
attribution matrix, a Selector turns the matrix into a selection. This file imports nothing heavy.

Shape suffixes: N pool rows, T target columns, B batch, S tokens, P parameters, D feature, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


class ConfigError(ValueError):
    """A config that cannot be carried out: names the dotted key, what was found, what would be right."""


class DataError(ValueError):
    """Data that cannot be used: names file and line, what was found, what would be right."""


class ArtifactMismatch(RuntimeError):
    """An artifact on disk that cannot serve the request: names the artifact and the one that is needed."""


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
class FeatureBlock:
    """One feature row per usable example of a batch, in the order of `row_B`, and why the others failed."""

    row_B: np.ndarray  # int64, catalogue rows
    feature_BD: np.ndarray  # float16, unit rows
    norm_B: np.ndarray  # float32, L2 norm of the projected row before it was made a unit
    grad_norm_B: np.ndarray  # float32, L2 norm of the plain, unprojected gradient
    loss_B: np.ndarray  # float32, mean over the trained tokens
    loss_tokens_B: np.ndarray  # int32
    failures: Mapping[int, str] = field(default_factory=dict)  # row -> reason, for the quarantine


@runtime_checkable
class Projector(Protocol):
    """A fixed random linear map R [P, D], unbiased: E[(x R) . (y R)] = x . y.

    It is applied in slices of coordinates so that a caller never holds a whole gradient. The result of
    a row depends on that row alone, whatever else is in the batch.
    """

    dimension: int

    def add_slice(self, out_BD: Tensor, block_Bp: Tensor, offset: int) -> None:
        """Add the projection of coordinates [offset, offset + p) of each row to `out_BD`, in place."""
        ...


class Featurizer(Protocol):
    """One batch of examples -> one feature row per example."""

    dimension: int

    def compute(self, examples: Sequence[TokenizedExample]) -> FeatureBlock: ...


class Scorer(Protocol):
    """Features of pool and targets at every checkpoint -> a block of the attribution matrix."""

    def score(self, pool_KBD: Sequence[np.ndarray], target_KTD: Sequence[np.ndarray]) -> np.ndarray:
        """Return A [B, T] float32; larger helps more. One entry of each sequence per checkpoint."""
        ...


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


class Journal(Protocol):
    """Where a selector that chooses one by one notes what it has chosen, and finds it after a kill."""

    def restore(self) -> Mapping[str, np.ndarray] | None:
        """Return what was recorded last by a selection of the same problem and options, or None."""
        ...

    def record(self, done: int, total: int, state: Callable[[], Mapping[str, np.ndarray]]) -> None:
        """Take note that `done` of about `total` rows are chosen; `state` is called only when it is to be kept."""
        ...


class NoJournal:
    """Keeps nothing."""

    def restore(self) -> None:
        return None

    def record(self, done: int, total: int, state: Callable[[], Mapping[str, np.ndarray]]) -> None:
        pass


@dataclass(frozen=True)
class SelectionProblem:
    """What every selector is given.

    `rows` are the row numbers of `attribution` in order; `facts` hold per-row columns in the same order
    (source, tokens, id ...) for the methods and reports that read them.
    """

    attribution: AttributionSource
    groups: tuple[str, ...]  # the task of each column
    budget: int  # examples
    seed: int = 0
    facts: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    journal: Journal = field(default_factory=NoJournal)


@dataclass(frozen=True)
class Selection:
    """Chosen rows in order of choice.

    `rows` int64 [budget] without repeats; `merit` float64 [budget], the utility each had when chosen (NaN
    where a method has none); `column` int64 [budget], the target column that won it (-1 where none did).
    """

    rows: np.ndarray
    merit: np.ndarray
    column: np.ndarray
    method: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class Selector(Protocol):
    """Attribution -> selection: a pure function of the problem and its seed."""

    def select(self, problem: SelectionProblem) -> Selection: ...
