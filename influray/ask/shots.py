"""Few-shot demonstrations for a question: rows of the pool, ordered, as a prompt that ends with it.

The rows of most influence are the candidates, by the run's index where it has one; a method (shot_methods) chooses
among them. Least influence comes first, most stands next to the question.

Shape suffixes: M candidates, P parts of the question, F numbers of a vector.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from influray.ask.query import Asked, QueryEngine
from influray.ask.shot_methods import METHODS, by_coverage, by_dpp, by_influence
from influray.config_messages import near
from influray.data.chat import ChatEncoder
from influray.data.question import Question, question_record
from influray.data.records import BadRow, Record
from influray.data.turns import Turn, is_blank
from influray.evaluation.copies import contaminated, text_of
from influray.protocols import ConfigError, DataError, TokenizedExample
from influray.registry import featurizer_traits
from influray.report.explorer.rows import MAX_TEXT, open_chosen, plain
from influray.store.exact_query import Answers, exact_query
from influray.store.vectors import SplitVectors

NEAR = 0.99  # cosine from which two candidates are near-duplicates
UNCUT = 2**31 - 1  # tokens: a prompt is counted whole
HOLDS, TWICE, TOOLS = "copies of the question", "near-duplicates of a better one", "with tools"
LONG, REFUSED = "too long for --max-tokens", "refused by the chat template"


@dataclass(frozen=True, slots=True)
class ShotsAsked:
    """What shots are asked for.

    Who chooses is the question with its answer, the row `like` of the run, whose question then ends the prompt, or the
    targets of `task`, by their mean, for a question whose answer is not known.
    """

    prompt: str = ""
    answer: str = ""
    system: str = ""
    like: str = ""
    task: str = ""
    k: int = 8
    method: str = "influence"
    selection: str = ""  # "" = the whole pool
    max_tokens: int | None = None  # of the prompt, the question and the answer's header included
    reverse: bool = False
    candidates: int = 100  # CEIL's number
    diversity: float = 1.0  # of dpp; relevance is counted in standard deviations over the pool


@dataclass(frozen=True, slots=True)
class Shot:
    """A row as a demonstration. `rank` is its place in the order of choice, from 1."""

    rank: int
    row: int
    id: str
    source: str
    influence: float
    z: float  # over all rows that could be chosen; 0 where they are alike
    text: str
    cut: bool  # text is not whole


@dataclass(frozen=True, slots=True)
class Shots:
    """The shots, in the order of the prompt; and the prompt, as messages and as the run's own chat template has it.

    `tokens` are those of the prompt; `notes` say why rows of more influence are no shots.
    """

    asked: str  # "question", "target ID", "pool ID" or "task NAME"
    method: str
    shots: tuple[Shot, ...]
    messages: tuple[dict[str, Any], ...]
    tools: tuple[Any, ...]  # which the question may call
    text: str
    tokens: int
    exact: bool  # False: better candidates may be missing
    notes: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def choose_shots(engine: QueryEngine, asked: ShotsAsked) -> Shots:
    """Return `k` shots, fewer where no more can be; the notes say what was left out and why.

    No shot holds the question (as `evaluation.copies.contaminated` tells), none is a near-duplicate of a better one
    (cosine NEAR of their features, or the same text), and none calls tools, which the prompt would have to declare.
    Rows that do not fit in what is left of `max_tokens` are passed over.

    Raises:
        ConfigError: an argument that cannot be.
        DataError, ArtifactMismatch: as `QueryEngine.ask`; a task's targets have no features.
    """
    _check(engine, asked)
    try:
        return _Chooser(engine, asked).choose()
    except BadRow as bad:  # with no shot at all
        raise DataError(f"question: {bad.reason}") from None


def _check(engine: QueryEngine, asked: ShotsAsked) -> None:
    if asked.method not in METHODS:
        hint = near(asked.method, METHODS)
        raise ConfigError(f"--method: found {asked.method!r}{hint}, expected one of {', '.join(METHODS)}")
    if asked.like and (asked.prompt or asked.answer or asked.system or asked.task):
        raise ConfigError("--like: the row brings its question; give it alone, or --question with --answer or --task")
    if not asked.like and is_blank(asked.prompt):
        raise ConfigError("--question: there is none; give one, or --like with the id of a target or a pool row")
    if not asked.like and bool(asked.answer) == bool(asked.task):
        raise ConfigError(
            "--answer: influence is that on an answer; give the one that is wanted, or, where none is known, --task "
            "with the name of a task whose targets stand for it" + ("; found both" if asked.answer else "")
        )
    tasks = dict.fromkeys(engine.catalogues["target"].groups)
    if asked.task and asked.task not in tasks:
        raise ConfigError(f"--task: found {asked.task!r}{near(asked.task, tasks)}, expected one of {', '.join(tasks)}")
    if asked.method == "coverage" and not asked.task and featurizer_traits(_featurizer(engine)).reads == "base":
        raise ConfigError(
            f"--method coverage: the parts of one question are the tokens of its answer, which features.featurizer: "
            f"{_featurizer(engine)} does not tell apart; give --task, whose targets are parts, or take influence or dpp"
        )
    if not asked.diversity > 0:
        raise ConfigError(f"--diversity: found {asked.diversity}, expected a number above 0")
    if asked.candidates < 1:
        raise ConfigError(f"--candidates: found {asked.candidates}, expected 1 or more")


def _featurizer(engine: QueryEngine) -> str:
    return engine.config.features.featurizer


class _Subset:
    """Some rows of the pool as vectors that can be asked."""

    def __init__(self, vectors: SplitVectors, rows: np.ndarray) -> None:
        self.rows = np.sort(rows)
        self._vectors, self._position_n = vectors, vectors.positions_of(self.rows)
        self.dimension, self.block_bytes = vectors.dimension, vectors.block_bytes

    def block(self, start: int, space_BF: np.ndarray) -> np.ndarray:
        self._vectors.read_at(self._position_n[start : start + len(space_BF)], space_BF)
        return space_BF


class _Chooser:
    """The choice for one question."""

    def __init__(self, engine: QueryEngine, asked: ShotsAsked) -> None:
        self._engine, self._asked = engine, asked
        self._pool = engine.catalogues["pool"]
        chosen = open_chosen(engine.directory.path, asked.selection).row_n if asked.selection else None
        self._subset = None if chosen is None else _Subset(engine.vectors, chosen)
        self._total = len(engine if self._subset is None else self._subset.rows)
        if not 1 <= asked.k <= self._total:
            where = f"the selection {asked.selection}" if asked.selection else "the pool"
            raise ConfigError(f"-k: found {asked.k}, expected 1 to {self._total}, the rows of {where} with features")
        data, model = engine.config.data, engine.config.model
        self._encoder = ChatEncoder(engine.tokenizer, model.chat_template, UNCUT, data.target_end_token)
        self._split, self._row = engine.find(asked.like) if asked.like else ("", -1)
        self._record = self._question()
        self._left: Counter[str] = Counter()
        self._looked = 0  # at so many rows, of most influence
        alone = self._tokens([])
        if asked.max_tokens is not None and alone > asked.max_tokens:
            raise ConfigError(f"--max-tokens: found {asked.max_tokens}, and the question alone takes {alone}")

    def choose(self) -> Shots:
        """Return the shots."""
        answers, rows = self._candidates()
        score_of = dict(zip(answers.helpful_rows[0].tolist(), answers.helpful_scores[0].tolist(), strict=True))
        influence_M = np.array([score_of[row] for row in rows], np.float64)
        spread = float(answers.std[0])
        z_M = (influence_M - answers.mean[0]) / (spread if spread > 0 else np.inf)
        taken = self._fitting(rows, influence_M, self._order(rows, influence_M, z_M))
        order = self._placed(taken, influence_M)
        records = [self._pool.parsed(rows[taken[n]]) for n in order]
        whole = with_shots(self._record, records)
        prompt = replace(whole, turns=whole.turns[:-1])
        shots = [self._shot(n + 1, rows[m], influence_M[m], z_M[m]) for n, m in ((n, taken[n]) for n in order)]
        return Shots(
            asked=self._name(),
            method=self._asked.method,
            shots=tuple(shots),
            messages=tuple(_message(turn) for turn in prompt.turns),
            tools=prompt.tools,
            text=self._encoder.render(prompt, prompt=True),
            tokens=self._tokens(records),
            exact=answers.exact,
            notes=self._notes(records),
        )

    def _name(self) -> str:
        if self._row >= 0:
            return f"{self._split} {self._engine.catalogues[self._split].cell(self._row, 'id')}"
        return f"task {self._asked.task}" if self._asked.task else "question"

    def _question(self) -> Record:
        """Return the question with its answer as the last turn."""
        asked = self._asked
        if self._row >= 0:
            record = self._engine.catalogues[self._split].parsed(self._row)
        else:
            # Where no answer is known, one that is there for the count of the tokens before it.
            record = question_record(Question(asked.prompt, asked.answer or "?", asked.system))
        last = max(i for i, turn in enumerate(record.turns) if turn.role == "assistant" and turn.trained)
        return replace(record, turns=record.turns[: last + 1])

    def _vector(self) -> np.ndarray:
        asked = self._asked
        if asked.task:
            return self._targets().mean(axis=0)
        question = None if asked.like else Question(asked.prompt, asked.answer, asked.system)
        return self._engine.vector(Asked(question, asked.like, k=1))

    def _targets(self) -> np.ndarray:
        """Return the vectors of the task's targets, [P, F]."""
        targets, groups = self._engine.targets, self._engine.catalogues["target"].groups
        places = [p for p, row in enumerate(targets.rows.tolist()) if groups[row] == self._asked.task]
        return targets.take(np.array(places, np.int64))

    def _candidates(self) -> tuple[Answers, list[int]]:
        """Return what the rows say to the question, and the rows that may be shots, by falling influence."""
        vector_1F = self._vector()[None]
        wanted = looked = min(max(self._asked.candidates, self._asked.k), self._total)
        while True:
            if self._subset is None:
                answers = self._engine.search(vector_1F, looked)
            else:
                answers = exact_query(self._subset, vector_1F, looked)
            rows = [row for row in answers.helpful_rows[0].tolist() if row >= 0]
            self._looked = len(rows)
            kept = self._kept(rows)
            if len(kept) >= wanted or looked == self._total:
                return answers, kept[:wanted]
            looked = min(2 * looked, self._total)

    def _kept(self, rows: Sequence[int]) -> list[int]:
        """Return the rows that may be shots, in their order, and count the others."""
        self._left.clear()
        records = self._pool.all_parsed(rows)
        texts = [text_of(row, record) for row, record in zip(rows, records, strict=True)]
        holding = {found.row for found in contaminated(texts, {"question": [text_of(0, self._record)]})}
        unit_MF = self._engine.vectors.gather(np.array(rows, np.int64))
        alike_MM = unit_MF @ unit_MF.T >= NEAR
        kept: list[int] = []
        said: set[tuple[str, str]] = set()
        for m, (row, record, text) in enumerate(zip(rows, records, texts, strict=True)):
            if row in holding:
                self._left[HOLDS] += 1
            elif record.tools:
                self._left[TOOLS] += 1
            elif (text.prompt, text.answer) in said or alike_MM[m, kept].any():
                self._left[TWICE] += 1
            else:
                kept.append(m)
                said.add((text.prompt, text.answer))
        return [rows[m] for m in kept]

    def _order(self, rows: Sequence[int], influence_M: np.ndarray, z_M: np.ndarray) -> list[int]:
        """Return the places of candidates in the order in which the method takes them."""
        vectors = self._engine.vectors
        position_M = vectors.positions_of(np.array(rows, np.int64))
        if not rows or self._asked.method == "influence":
            return by_influence(influence_M).tolist()
        if self._asked.method == "dpp":
            return by_dpp(z_M, vectors.take(position_M), self._asked.diversity).tolist()
        if self._asked.task:
            return by_coverage(vectors.take(position_M) @ self._targets().T).tolist()
        _, part_PM = self._engine.token_influences(self._example(), position_M)
        return by_coverage(part_PM.T).tolist()

    def _example(self) -> TokenizedExample:
        if self._row >= 0:
            return self._engine.catalogues[self._split].tokenized(self._row, self._row + 1)[0]
        encoded = self._engine.encoder.encode(self._record)
        return TokenizedExample(0, encoded.input_ids, encoded.loss_mask)

    def _placed(self, taken: Sequence[int], influence_M: np.ndarray) -> list[int]:
        """Return the ordinals of what was taken, in the order of the prompt."""
        order = sorted(range(len(taken)), key=lambda n: (influence_M[taken[n]], -n))
        return order[::-1] if self._asked.reverse else order

    def _fitting(self, rows: Sequence[int], influence_M: np.ndarray, order: Sequence[int]) -> list[int]:
        """Return the first k places of an order whose rows fit in the prompt, in that order."""
        taken: list[int] = []
        for m in order:
            if len(taken) == self._asked.k:
                break
            tried = [*taken, m]
            try:
                tokens = self._tokens([self._pool.parsed(rows[tried[n]]) for n in self._placed(tried, influence_M)])
            except BadRow:
                self._left[REFUSED] += 1
                continue
            if self._asked.max_tokens is not None and tokens > self._asked.max_tokens:
                self._left[LONG] += 1
                continue
            taken = tried
        return taken

    def _tokens(self, records: Sequence[Record]) -> int:
        """Return the tokens of the prompt, as the model reads them. Raises BadRow where the template refuses it."""
        return self._encoder.encode(with_shots(self._record, records)).answer_start

    def _shot(self, rank: int, row: int, influence: float, z: float) -> Shot:
        text = plain(self._pool.parsed(row))
        identity, source = self._pool.cell(row, "id"), self._pool.cell(row, "source")
        return Shot(rank, row, identity, source, float(influence), float(z), text[:MAX_TEXT], len(text) > MAX_TEXT)

    def _notes(self, records: Sequence[Record]) -> tuple[str, ...]:
        own = {turn.content for turn in self._record.turns if _leads(turn)}
        lost = sum(any(_leads(turn) and turn.content not in own for turn in record.turns) for record in records)
        reasons = ", ".join(f"{count} {reason}" for reason, count in self._left.items())
        notes = [f"left out of the {self._looked} rows of most influence: {reasons}"] if reasons else []
        if lost:
            notes.append(f"system turns of their own that the prompt leaves out: in {lost} shots")
        if len(records) < self._asked.k:
            notes.append(f"{len(records)} shots of {self._asked.k}: no other candidate can be one")
        return tuple(notes)


def with_shots(question: Record, records: Sequence[Record]) -> Record:
    """Return a question and its answer, its last turn, after shots in the order given: only that answer is trained."""
    system = next(i for i, turn in enumerate(question.turns) if not _leads(turn))
    shots = [turn for record in records for turn in _demonstration(record)]
    before = [replace(turn, trained=False) for turn in question.turns[system:-1]]
    return replace(question, turns=(*question.turns[:system], *shots, *before, question.turns[-1]))


def _demonstration(record: Record) -> list[Turn]:
    """Return the turns of a shot: without system turns, up to its last answer, none of it trained."""
    last = max(i for i, turn in enumerate(record.turns) if turn.role == "assistant")
    return [replace(turn, trained=False) for turn in record.turns[: last + 1] if not _leads(turn)]


def _leads(turn: Turn) -> bool:
    return turn.role in ("system", "developer")


def _message(turn: Turn) -> dict[str, Any]:
    return {key: value for key, value in turn.message().items() if value is not None or key == "content"}
