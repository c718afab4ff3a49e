"""What demonstrations are worth: loss and exact match of a run's base model on its test records, after shots.

    python jobs/benchmark_shots.py RUN [-k 8] [--questions 40] [--methods none,random,bm25,...]

Shots of each method stand before each question in the run's own chat form. Columns: mean loss over the answer's tokens,
exact match (teacher-forced, as `influray evaluate` counts it), and both less those of random shots, with 95 % bootstrap
intervals over questions drawn anew within their tasks. random and its kin are means of several draws. The run is not
changed. `answer known` marks methods that read the answer that is then judged: an upper limit, no method.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

import influray
from influray.ask.shots import UNCUT, choose_shots, with_shots
from influray.ask.shots import ShotsAsked as Asked
from influray.data.catalogue import Catalogue
from influray.data.chat import ChatEncoder
from influray.data.records import Record
from influray.evaluation.answer_loss import score_answers
from influray.evaluation.copies import contaminated, text_of
from influray.features.ngram import NgramFeaturizer
from influray.features.representation import RepresentationFeaturizer
from influray.model.loading import load_base
from influray.protocols import FeatureRows, Stores, TextExample, TokenizedExample
from influray.runs import Run
from influray.scorers.bm25 import BM25

DRAWS, RESAMPLES, BATCH = 3, 2000, 32
KINDS = ("influence", "coverage", "dpp")
METHODS = {
    "none": "no shots",
    "random": "random rows",
    "source": "random rows of the task's own sources",
    "targets": "random targets of the task",
    "bm25": "nearest question by BM25",
    "representation": "nearest question by hidden states",
    **{f"{kind} task": f"{kind}, the task's targets choose" for kind in KINDS},
    **{f"{kind} answer": f"{kind}, answer known" for kind in KINDS},
}


@dataclass(frozen=True)
class Question:
    """A test record with what tells it apart from shots."""

    number: int
    task: str
    record: Record
    tokens: int  # of the answer


class Bench:
    """A run, its base model, and the questions that are asked."""

    def __init__(self, run: Run, given: argparse.Namespace) -> None:
        self.run, self.k, self.seed = run, given.k, given.seed
        self.diversity = given.diversity
        config = run.config
        self.pool, self.target = (Catalogue(run.directory.data(split)) for split in ("pool", "target"))
        self.records = self.pool.all_parsed(range(len(self.pool)))
        self.texts = [text_of(row, record) for row, record in enumerate(self.records)]
        self.sources = self.pool.facts("source")["source"]
        template, end = config.model.chat_template, config.data.target_end_token
        self.encoder = ChatEncoder(run.engine.tokenizer, template, UNCUT, end)
        self.model: Any = load_base(config.model)
        self.questions = self._questions(given.questions)
        positions = getattr(self.model.config, "max_position_embeddings", UNCUT)
        self.room = min(given.max_tokens or UNCUT, positions - max(one.tokens for one in self.questions))

    def _questions(self, most: int) -> list[Question]:
        test = Catalogue(self.run.directory.data("test"))
        found = []
        for task in dict.fromkeys(test.groups):
            rows = [row for row, group in enumerate(test.groups) if group == task]
            drawn = np.random.default_rng(self.seed).permutation(rows)[:most]
            for row in sorted(drawn.tolist()):
                record = test.parsed(row)
                encoded = self.encoder.encode(record)
                found.append(Question(len(found), task, record, len(encoded.input_ids) - encoded.answer_start))
        return found

    def walked(self, question: Question, rows: Iterable[int]) -> list[Record]:
        """Return the first k rows that can be shots, least near first: as `choose_shots` leaves rows out."""
        own, taken, said = text_of(0, question.record), [], set()
        for row in rows:
            text, record = self.texts[row], self.records[row]
            if len(taken) == self.k:
                break
            if record.tools or (text.prompt, text.answer) in said or list(contaminated([text], {"question": [own]})):
                continue
            if self.encoder.encode(with_shots(question.record, [record, *taken])).answer_start <= self.room:
                taken.insert(0, record)
                said.add((text.prompt, text.answer))
        return taken

    def example(self, question: Question, shots: Sequence[Record]) -> TokenizedExample:
        """Return the question after shots, its answer trained."""
        encoded = self.encoder.encode(with_shots(question.record, shots))
        return TokenizedExample(question.number, encoded.input_ids, encoded.loss_mask)

    def shots(self, method: str, question: Question, draw: int) -> list[Record]:
        """Return the shots of one of METHODS."""
        kind, _, chooser = method.partition(" ")
        generator = np.random.default_rng([self.seed, draw, question.number])
        if method == "none":
            return []
        if method == "targets":
            rows = [row for row, task in enumerate(self.target.groups) if task == question.task]
            return self._fitting_targets(question, generator.permutation(rows).tolist())
        if chooser:
            return self._chosen(kind, chooser, question)
        if method == "source":
            wanted = set(self.run.config.data.targets[question.task].expected_sources)
            rows = [row for row, source in enumerate(self.sources) if source in wanted]
            return self.walked(question, generator.permutation(rows).tolist())
        if method == "random":
            return self.walked(question, generator.permutation(len(self.pool)).tolist())
        score_NQ = self.bm25 if method == "bm25" else self.cosines
        return self.walked(question, np.argsort(-score_NQ[:, question.number], kind="stable").tolist())

    def _fitting_targets(self, question: Question, rows: Sequence[int]) -> list[Record]:
        taken: list[Record] = []
        for record in self.target.all_parsed(rows):
            tokens = self.encoder.encode(with_shots(question.record, [*taken, record])).answer_start
            if len(taken) < self.k and tokens <= self.room:
                taken.append(record)
        return taken

    def _chosen(self, kind: str, chooser: str, question: Question) -> list[Record]:
        prompt, answer = question.record.turns[-2].content, question.record.turns[-1].content
        system = "".join(turn.content for turn in question.record.turns[:-2] if turn.role == "system")
        given: dict[str, Any] = {"task": question.task} if chooser == "task" else {"answer": answer}
        asked = Asked(prompt, system=system, k=self.k, method=kind, max_tokens=self.room, **given)
        found = choose_shots(self.run.engine, replace(asked, diversity=self.diversity))
        return [self.records[shot.row] for shot in found.shots]

    @cached_property
    def bm25(self) -> np.ndarray:
        """BM25 of the pool's questions for those asked, [N, Q]."""
        scorer = BM25(Stores((1.0,), "ngram", "counts", ("tokens",)))
        pool, asked = (self._counts(records) for records in (self.records, [one.record for one in self.questions]))
        state = scorer.fit(1, scorer.sums(1, pool, asked, {}), asked, {})
        return scorer.score(pool, asked, state)

    def _counts(self, records: Sequence[Record]) -> FeatureRows:
        texts = ["\n".join(turn.text for turn in record.turns if turn.role == "user") for record in records]
        block = NgramFeaturizer().compute([TextExample(i, text, 1, 1) for i, text in enumerate(texts)])
        return FeatureRows(block.row_B, ["all"] * len(texts), (), ({},), block.counts)

    @cached_property
    def cosines(self) -> np.ndarray:
        """Cosines of the base model's hidden states over the pool's questions with those asked, [N, Q]."""
        pool, asked = (self._states(records) for records in (self.records, [one.record for one in self.questions]))
        return pool @ asked.T

    def _states(self, records: Sequence[Record]) -> np.ndarray:
        featurizer = RepresentationFeaturizer(self.model)
        prompts = [self._prompt(number, record) for number, record in enumerate(records)]
        state_ND = np.zeros((len(prompts), featurizer.dimension), np.float32)
        for some in range(0, len(prompts), BATCH):
            block = featurizer.compute(prompts[some : some + BATCH])
            state_ND[block.row_B] = block.feature_BD
        return state_ND

    def _prompt(self, number: int, record: Record) -> TokenizedExample:
        encoded = self.encoder.encode(record)
        ids = encoded.input_ids[: encoded.answer_start]
        return TokenizedExample(number, ids, np.arange(len(ids)) == len(ids) - 1)


@dataclass(frozen=True)
class Judged:
    """What a method gave for each question: means over its draws."""

    loss_Q: np.ndarray
    match_Q: np.ndarray
    shots: float
    tokens: float  # of prompt and answer


def judged(bench: Bench, method: str, draws: int) -> Judged:
    """Return what a method gives for every question."""
    losses, matches, shots, tokens = [], [], [], []
    for draw in range(draws):
        chosen = [bench.shots(method, question, draw) for question in bench.questions]
        examples = [bench.example(*pair) for pair in zip(bench.questions, chosen, strict=True)]
        loss_Q, match_Q = score_answers(bench.model, examples, bench.run.config.evaluation.token_budget)
        losses.append(loss_Q)
        matches.append(match_Q)
        shots.append(np.mean([len(one) for one in chosen]))
        tokens.append(np.mean([one.tokens for one in examples]))
    loss_Q, match_Q = np.mean(losses, axis=0), np.mean(matches, axis=0)
    return Judged(loss_Q, match_Q, float(np.mean(shots)), float(np.mean(tokens)))


def interval(value_Q: np.ndarray, tasks: Sequence[str], seed: int) -> tuple[float, float, float]:
    """Return (mean over tasks of their means, and its 95 % bootstrap interval over questions within tasks)."""
    generator = np.random.default_rng(seed)
    task_Q = np.array(tasks, dtype=object)
    groups = [np.flatnonzero(task_Q == task) for task in dict.fromkeys(tasks)]
    drawn_R = np.zeros(RESAMPLES)
    for rows in groups:
        drawn_R += value_Q[rows[generator.integers(0, len(rows), (RESAMPLES, len(rows)))]].mean(axis=1) / len(groups)
    mean = float(np.mean([value_Q[rows].mean() for rows in groups]))
    return mean, float(np.quantile(drawn_R, 0.025)), float(np.quantile(drawn_R, 0.975))


def measured(bench: Bench, methods: Sequence[str], show: Callable[[str], None]) -> dict[str, Any]:
    """Return the numbers of every method, and show each as it comes."""
    tasks = [question.task for question in bench.questions]
    found: dict[str, Judged] = {}
    report: dict[str, Any] = {}
    for method in ("random", *(method for method in methods if method != "random")):
        started = time.perf_counter()
        found[method] = one = judged(bench, method, DRAWS if method in ("random", "source", "targets") else 1)
        numbers = {
            "loss": interval(one.loss_Q, tasks, bench.seed),
            "match": interval(one.match_Q, tasks, bench.seed),
            "loss_less_random": interval(one.loss_Q - found["random"].loss_Q, tasks, bench.seed),
            "match_less_random": interval(one.match_Q - found["random"].match_Q, tasks, bench.seed),
            "by_task": {
                task: [float(np.mean(values[np.array(tasks) == task])) for values in (one.loss_Q, one.match_Q)]
                for task in dict.fromkeys(tasks)
            },
            "shots": one.shots,
            "tokens": one.tokens,
            "seconds": time.perf_counter() - started,
        }
        report[method] = numbers
        show(line(method, numbers))
    return report


def line(method: str, numbers: dict[str, Any]) -> str:
    """Return a row of the table."""
    loss, less, match, more = (numbers[key] for key in ("loss", "loss_less_random", "match", "match_less_random"))
    cells = [f"{loss[0]:.3f}", f"{less[0]:+.3f} [{less[1]:+.3f}, {less[2]:+.3f}]"]
    cells += [f"{100 * match[0]:.1f} %", f"{100 * more[0]:+.1f} [{100 * more[1]:+.1f}, {100 * more[2]:+.1f}]"]
    cells += [f"{numbers['shots']:.1f}", f"{numbers['tokens']:.0f}"]
    return f"| {METHODS[method]} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("-k", type=int, default=8)
    parser.add_argument("--questions", type=int, default=40, help="of each task")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--max-tokens", type=int, help="of a prompt; what the model's positions leave is the most")
    parser.add_argument("--diversity", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="a file for the numbers")
    given = parser.parse_args()
    methods = given.methods.split(",")
    if unknown := set(methods) - set(METHODS):
        parser.error(f"--methods: {', '.join(sorted(unknown))}; known: {', '.join(METHODS)}")
    bench = Bench(influray.open_run(given.run), given)
    print(f"{len(bench.questions)} questions, {given.k} shots, prompts of at most {bench.room} tokens\n")
    print("| shots | loss | less random's | exact match | less random's | shots that fit | tokens |")
    print("|---|---|---|---|---|---|---|")
    report = measured(bench, methods, lambda text: print(text, flush=True))
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            json.dump({"k": given.k, "room": bench.room, "questions": len(bench.questions), "methods": report}, file)


if __name__ == "__main__":
    main()
