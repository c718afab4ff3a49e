"""The engine of `influray query`: which rows of the pool would help or harm a question that is in no file.

The question goes the way of a target: through the model's template, its gradient at every checkpoint, the run's
projector. One inner product with a pool row's stored vector is then the entry that the attribution matrix would have.

Shape suffixes: Q questions, N pool rows, K checkpoints, F numbers of a vector, k answers, n pieces of an answer.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.ask.answers import Hit, QueryAnswer, TokenInfluence, number
from influray.ask.warm import WarmFeaturizers
from influray.config import Config
from influray.data.catalogue import Catalogue
from influray.data.chat import ChatEncoder
from influray.data.question import Question, question_record
from influray.data.records import BadRow
from influray.evaluation.harm import harm_limit
from influray.features.answer_pieces import answer_pieces
from influray.protocols import USER_ERRORS, ArtifactMismatch, ConfigError, DataError, TokenizedExample
from influray.report.explorer.rows import MAX_TEXT, plain
from influray.store.artifact import read_manifest
from influray.store.datastore import Datastore
from influray.store.exact_query import Answers, exact_query
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_selection
from influray.store.vectors import PoolVectors, SplitVectors

if TYPE_CHECKING:
    from influray.ask.index import PoolIndex

KEPT_ROWS = 4096  # whose texts stay in memory: the same rows answer many questions
SPLITS = ("target", "pool")  # in which an id is looked for, in this order
# Least cosine of a stored row and the one made of it now. Rounding leaves 0.9999 and more in float32.
_SAME = {"float32": 0.99, "float64": 0.99, "bfloat16": 0.9, "float16": 0.9}


class UnknownId(DataError):
    """An id that neither pool nor targets have."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question, or in its place the id of a row of the run whose stored vector asks.

    `like`: a target's id, a pool row's, or "target/ID" and "pool/ID" where both have it. A target's vector is the
    plain gradient; a pool row's is its stored direction (Adam's, by default), so it asks for rows that would move the
    model as this one does.
    """

    question: Question | None = None
    like: str = ""
    k: int = 20  # rows at each end
    tokens: bool = False


@dataclass(frozen=True)
class _Row:
    """What is asked with: a row of the run, or an example whose features are to be made."""

    name: str
    example: TokenizedExample | None = None
    truncated: bool = False
    split: str = ""  # "" = not a row of the run
    row: int = -1


class QueryEngine:
    """Answers queries on a finished run. The model is loaded by the first question that needs one, and stays.

    Calls from several threads take turns.

    Raises:
        ArtifactMismatch: features or attribution matrix are not there, not of each other, or cannot be asked; or the
            run has an index of other features.
        ConfigError: it has an index, and faiss is not installed.
    """

    def __init__(self, directory: RunDirectory, config: Config, device: str = "auto") -> None:
        self.directory = directory
        self.config = config
        self._device = device
        self._lock = threading.Lock()
        directory.require_made("data", "warmup", "featurize", "score", "select", "index")
        self.vectors = PoolVectors(directory)
        self._index = _open_index(directory)
        if self._index is None:  # every row is to be read; a model is loaded meanwhile
            self.vectors.check_ahead()
        self.catalogues = {split: Catalogue(directory.data(split)) for split in SPLITS}
        self._facts: dict[tuple[str, str], np.ndarray] = {}
        self._known_rows = lru_cache(KEPT_ROWS)(self._row_facts)

    def __len__(self) -> int:
        return len(self.vectors.rows)

    def ask(self, asked: Asked) -> QueryAnswer:
        """Return the answer to one query.

        Raises:
            UnknownId: no row has the id of `like`.
            DataError: a blank question or answer, nothing to train on, k not from 1 to the rows of the pool, or a
                gradient that is not finite.
            ArtifactMismatch: the model or its checkpoints are not those that the run's features were made with.
            ConfigError: the model cannot be loaded.
        """
        (found,) = self.ask_many([asked])
        if isinstance(found, Exception):
            raise found
        return found

    def ask_many(self, asked: Sequence[Asked]) -> list[QueryAnswer | ConfigError | DataError | ArtifactMismatch]:
        """Return the answer, or the error, of each query: one pass of the model and one over the pool for all."""
        with self._lock:
            started = time.perf_counter()
            found: list[Any] = [self._prepared(one) for one in asked]
            self._ask_together(asked, found)
            seconds = time.perf_counter() - started
            return [replace(one, seconds=seconds) if isinstance(one, QueryAnswer) else one for one in found]

    def load(self) -> None:
        """Load the model now, and see whether it is that of the run. Raises as `ask`."""
        with self._lock:
            assert self._warm is not None

    def _prepared(self, asked: Asked) -> _Row | Exception:
        try:
            if not 1 <= asked.k <= len(self):
                raise DataError(f"k: found {asked.k}, expected 1 to {len(self)}, the rows that can be asked")
            if bool(asked.like) == (asked.question is not None):
                raise DataError("query: ask with a question and its answer, or with the id of a row, one of them")
            return self._row_of(asked.like, asked.tokens) if asked.question is None else self._encoded(asked.question)
        except USER_ERRORS as error:
            return error

    def _encoded(self, question: Question) -> _Row:
        record = question_record(question)
        try:
            encoded = self.encoder.encode(record)
        except BadRow as bad:
            raise DataError(f"question: {bad.reason}") from None
        example = TokenizedExample(0, encoded.input_ids, encoded.loss_mask)
        return _Row("question", example, encoded.truncated)

    def _row_of(self, like: str, tokens: bool) -> _Row:
        split, row = self.find(like)
        catalogue = self.catalogues[split]
        name = f"{split} {catalogue.cell(row, 'id')}"
        if tokens and split == "pool":
            raise DataError(
                f"tokens: the stored direction of {name} is no sum over its tokens; ask with its text, or with a target"
            )
        (example,) = catalogue.tokenized(row, row + 1) if tokens else (None,)
        self._split(split).positions_of(np.array([row]))
        return _Row(name, example, catalogue.cell(row, "truncated"), split, row)

    def find(self, like: str) -> tuple[str, int]:
        """Return (split, catalogue row) of an id, targets first. Raises UnknownId."""
        head, slash, tail = like.partition("/")
        places = [(split, like) for split in SPLITS]
        if slash and head in SPLITS:
            places.append((head, tail))
        for split, identity in places:
            try:
                return split, self.catalogues[split].find(identity)
            except DataError:  # that split has no such id
                continue
        raise UnknownId(f"like: no row of pool or targets has the id {like[:200]!r}; it may stand in the quarantine")

    def vector(self, asked: Asked) -> np.ndarray:
        """Return the vector that asks, float32 [F]. Raises as `ask`."""
        with self._lock:
            own_QF, _ = self._own(found := [self._prepared(asked)])
        if isinstance(found[0], Exception):
            raise found[0]
        return own_QF[0]

    def _own(self, found: list[Any]) -> tuple[np.ndarray, list[tuple[float, float]]]:
        """Return the vectors of the rows of `found`, and their (loss, gradient norm); errors take a row's place."""
        own_QF, facts = np.zeros((len(found), self.vectors.dimension), np.float32), [(np.nan, np.nan)] * len(found)
        for q, row in enumerate(found):
            if isinstance(row, _Row) and row.split:
                vectors = self._split(row.split)
                position = vectors.positions_of(np.array([row.row]))
                own_QF[q] = vectors.take(position)[0]
                facts[q] = self._stored_facts(row.split, int(position[0]))
        new = [q for q, row in enumerate(found) if isinstance(row, _Row) and not row.split]
        if new:
            try:
                self._take_features(new, found, own_QF, facts)
            except USER_ERRORS as error:
                found[:] = [error if q in new else one for q, one in enumerate(found)]
        return own_QF, facts

    def _ask_together(self, asked: Sequence[Asked], found: list[Any]) -> None:
        """Put answers, or errors, in the place of the rows of `found`."""
        own_QF, facts = self._own(found)
        alive = [q for q, row in enumerate(found) if isinstance(row, _Row)]
        if not alive:
            return
        answers = self.search(own_QF[alive], max(asked[q].k for q in alive))
        for place, q in enumerate(alive):
            try:
                found[q] = self._answer(asked[q], found[q], answers, place, facts[q])
            except USER_ERRORS as error:
                found[q] = error

    def _take_features(
        self, new: Sequence[int], found: list[Any], own_QF: np.ndarray, facts: list[tuple[float, float]]
    ) -> None:
        made = self._warm.rows([found[q].example for q in new])
        weight_K = self.vectors.weights
        joined_QF = self.vectors.query(made.unit_KQD, list(made.norm_KQ))
        for place, q in enumerate(new):
            if made.failure_Q[place]:
                found[q] = DataError(f"question: {made.failure_Q[place]}; nothing can be compared with it")
                continue
            own_QF[q] = joined_QF[place]
            facts[q] = float(weight_K @ made.loss_KQ[:, place]), float(weight_K @ made.grad_norm_KQ[:, place])

    def search(self, query_QF: np.ndarray, k: int) -> Answers:
        """Return what the pool says to vectors: by the index, where the run has one."""
        return exact_query(self.vectors, query_QF, k) if self._index is None else self._index.search(query_QF, k)

    def _answer(self, asked: Asked, row: _Row, answers: Answers, place: int, facts: tuple[float, float]) -> QueryAnswer:
        mean, std = float(answers.mean[place]), float(answers.std[place])
        sides = []
        for rows, scores in (
            (answers.helpful_rows, answers.helpful_scores),
            (answers.harmful_rows, answers.harmful_scores),
        ):
            pairs = zip(rows[place, : asked.k].tolist(), scores[place, : asked.k].tolist(), strict=True)
            # An approximate index may find fewer rows than it is asked for, and fills up with -1.
            sides.append(tuple(self._hit(one, score, mean, std) for one, score in pairs if one >= 0))
        return QueryAnswer(
            asked=row.name,
            seconds=0.0,
            mean=mean,
            std=std,
            exact=answers.exact,
            loss=number(facts[0]),
            grad_norm=number(facts[1]),
            truncated=row.truncated,
            helpful=sides[0],
            harmful=tuple(hit for hit in sides[1] if hit.z is not None and hit.z < harm_limit(mean, std)),
            tokens=self._token_influences(row.example, sides[0]) if asked.tokens and row.example is not None else None,
        )

    def _hit(self, row: int, influence: float, mean: float, std: float) -> Hit:
        z = number((influence - mean) / std) if std > 0 else None
        return Hit(influence=influence, z=z, **self._known_rows(row))

    def _row_facts(self, row: int) -> dict[str, Any]:
        catalogue = self.catalogues["pool"]
        position = self.vectors.positions_of(np.array([row]))[0]
        text = plain(catalogue.parsed(row))
        return {
            "row": row,
            "id": catalogue.cell(row, "id"),
            "source": catalogue.cell(row, "source"),
            "norm": number(float(self._mean_fact("pool", "norm")[position])),
            "text": text[:MAX_TEXT],
            "cut": len(text) > MAX_TEXT,
            "selections": tuple(name for name, rows in self._selections.items() if row in rows),
        }

    def _token_influences(self, example: TokenizedExample, helpful: Sequence[Hit]) -> tuple[TokenInfluence, ...]:
        rows = self.vectors.positions_of(np.array([hit.row for hit in helpful]))
        pieces, influence_nk = self.token_influences(example, rows)
        mean_n = influence_nk.mean(axis=1)
        total = float(mean_n.sum())
        return tuple(
            TokenInfluence(text, number(value / total) if total else None, value)
            for text, value in zip(pieces, mean_n.tolist(), strict=True)
        )

    def token_influences(self, example: TokenizedExample, positions: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Return the texts of the answer's pieces, and the influence of each on the pool rows at `positions`.

        influence[n, i] = sum over checkpoints of w_k <g_ki, R grad_n> / |R grad|, where the grad_n add up to grad: the
        sum over n is the influence of the row. float64.
        """
        pieces = answer_pieces(example, self.tokenizer)
        share_n = np.array([piece.share for piece in pieces])
        parts_K = [part_nD * share_n[:, None] for part_nD in self._warm.projected([piece.example for piece in pieces])]
        if self.vectors.similarity == "cosine":
            parts_K = [part_nD / np.linalg.norm(part_nD.sum(axis=0)) for part_nD in parts_K]
        weighted = [part_nD * np.sqrt(w) for part_nD, w in zip(parts_K, self.vectors.weights, strict=True)]
        pool_kF = self.vectors.take(positions).astype(np.float64)
        return [piece.text for piece in pieces], np.concatenate(weighted, axis=1) @ pool_kF.T

    def _split(self, split: str) -> SplitVectors:
        return self.vectors if split == "pool" else self.targets

    @cached_property
    def targets(self) -> SplitVectors:
        return SplitVectors(self.directory, "target")

    @cached_property
    def tokenizer(self) -> Any:
        from influray.model.loading import load_tokenizer

        return load_tokenizer(self.config.model)

    @cached_property
    def encoder(self) -> ChatEncoder:
        data = self.config.data
        return ChatEncoder(self.tokenizer, self.config.model.chat_template, data.max_tokens, data.target_end_token)

    @cached_property
    def _warm(self) -> WarmFeaturizers:
        device = self._device
        if device == "auto":
            import torch

            wanted = self.config.resources.gpus_per_worker != 0 and torch.cuda.is_available()
            device = "cuda:0" if wanted else "cpu"
        warm = WarmFeaturizers(self.directory, self.config, len(self.vectors.weights), device)
        self._require_same(warm)
        return warm

    def _require_same(self, warm: WarmFeaturizers) -> None:
        """Make the row of one target anew, and raise ArtifactMismatch where it is not the stored one."""
        row = int(self.targets.rows[0])
        catalogue = self.catalogues["target"]
        (example,) = catalogue.tokenized(row, row + 1)
        encoded = self.encoder.encode(catalogue.parsed(row))
        if not np.array_equal(encoded.input_ids, example.input_ids_S):
            raise ArtifactMismatch(
                f"{catalogue.folder}: target {catalogue.cell(row, 'id')!r} has other tokens now; the tokenizer, "
                "model.chat_template or data.max_tokens are not those of the run: run `influray run` again"
            )
        made = warm.rows([example])
        width = sum(unit_QD.shape[1] for unit_QD in made.unit_KQD)
        if width != self.targets.dimension:
            raise ArtifactMismatch(
                f"{self.directory.features('target', 1)}: rows of {self.targets.dimension} numbers over the "
                f"checkpoints, and the config makes {width}; run `influray featurize` again"
            )
        new_F, old_F = (
            self.vectors.query(made.unit_KQD, list(made.norm_KQ))[0],
            self.targets.take(np.zeros(1, np.int64))[0],
        )
        start = 0
        for k, unit_QD in enumerate(made.unit_KQD):
            if not self.vectors.weights[k]:  # trained at learning rate 0: nothing of it enters an answer
                start += unit_QD.shape[1]
                continue
            new_D, old_D = (vector[start : (stop := start + unit_QD.shape[1])] for vector in (new_F, old_F))
            cosine = float(new_D @ old_D / max(float(np.linalg.norm(new_D) * np.linalg.norm(old_D)), 1e-30))
            if not cosine >= _SAME[self.config.model.dtype]:
                raise ArtifactMismatch(
                    f"{self.directory.features('target', k + 1)}: the stored row of target "
                    f"{catalogue.cell(row, 'id')!r} is not what the model makes of it now (cosine {cosine:.3f}); "
                    "model.base, a checkpoint or features.projector are not those of the run: run `influray run` again"
                )
            start = stop

    def _stored_facts(self, split: str, position: int) -> tuple[float, float]:
        loss_N, grad_norm_N = (self._mean_fact(split, name) for name in ("loss", "grad_norm"))
        return float(loss_N[position]), float(grad_norm_N[position])

    def _mean_fact(self, split: str, name: str) -> np.ndarray:
        """Return the mean of a column over the checkpoints, with their weights, per row; NaN where there is none."""
        if (split, name) not in self._facts:
            rows_N = self._split(split).rows
            total_N = np.zeros(len(rows_N))
            for k, weight in enumerate(self.vectors.weights.tolist(), start=1):
                store = Datastore(self.directory.features(split, k))
                first = next(store.parts(), None)
                there = first is not None and name in first.column_names
                value_N = store.column(name)[np.searchsorted(store.column("row"), rows_N)] if there else np.nan
                total_N += weight * value_N
            self._facts[split, name] = total_N
        return self._facts[split, name]

    @cached_property
    def _selections(self) -> dict[str, frozenset[int]]:
        """The rows of every selection of the config that is there."""
        names = [selector.name for selector in self.config.selectors]
        there = [name for name in names if read_manifest(self.directory.selection(name)) is not None]
        return {name: frozenset(read_selection(self.directory.selection(name)).rows.tolist()) for name in there}


def _open_index(directory: RunDirectory) -> PoolIndex | None:
    """Return the index of the run; None where it has none, and every row is asked."""
    if read_manifest(directory.index) is None:
        return None
    from influray.ask.index import PoolIndex

    return PoolIndex(directory)
