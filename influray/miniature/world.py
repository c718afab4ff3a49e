"""The miniature world: a skewed, flawed pool, a few targets and a held-out test per task.

Everything is a function of a seed. Which problems may appear where is not: it follows from the problem alone, so
that a base model pretrained once has met no problem of any pool, target set or test set, in any world.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from influray.miniature.skills import SKILLS, USUAL, Limits, Problem, Skill

Record = dict[str, Any]
SPLITS = {"pretraining": 40, "pool": 72, "target": 84, "test": 100}  # upper ends, in percent of all problems
POOL_VERBOSE = 0.30
MAX_DRAWS = 10_000  # before a world is called too small


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything."""

    pool: int = 4000  # rows
    targets: int = 30  # rows per task
    test: int = 80  # rows per task
    limits: Limits = USUAL


DEMO = Size()
SMALL = Size(pool=600, targets=10, test=10)  # shows that everything works; its numbers mean little
LARGE = Size(pool=50_000, targets=50, test=200, limits=Limits(digits=5, people=960, word=6))


@dataclass(frozen=True)
class World:
    """Records in `messages` form. Pool records carry `flaws`, which no model sees; others carry `answer`."""

    pool: list[Record]
    targets: Mapping[str, list[Record]]
    test: Mapping[str, list[Record]]


def split_of(skill: str, key: str) -> str:
    """Return the one split that problem may appear in."""
    percent = int.from_bytes(hashlib.sha256(f"{skill}/{key}".encode()).digest()[:8], "big") % 100
    return next(name for name, end in SPLITS.items() if percent < end)


def make_world(seed: int, size: Size = DEMO) -> World:
    """Return the world of a seed: the same records, in the same order, on every machine."""
    tasks = [skill for skill in SKILLS if skill.is_task]
    return World(
        pool=_pool(seed, size),
        targets={skill.name: _examination(seed, skill, "target", size.targets, size.limits) for skill in tasks},
        test={skill.name: _examination(seed, skill, "test", size.test, size.limits) for skill in tasks},
    )


def write_world(folder: str | Path, seed: int, size: Size = DEMO) -> dict[str, str]:
    """Write pool.jsonl, targets/TASK.jsonl, test/TASK.jsonl and world.json; return the SHA-256 of each JSONL file."""
    folder = Path(folder)
    world = make_world(seed, size)
    files = {"pool.jsonl": world.pool}
    files |= {f"targets/{task}.jsonl": rows for task, rows in world.targets.items()}
    files |= {f"test/{task}.jsonl": rows for task, rows in world.test.items()}
    digests = {}
    for name, rows in files.items():
        payload = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(payload)
        digests[name] = hashlib.sha256(payload).hexdigest()
    about = {"seed": seed, "size": asdict(size), "sha256": digests}
    (folder / "world.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return digests


def draw_problem(rng: Random, skill: Skill, kind: str, split: str, limits: Limits) -> Problem:
    """Return a problem of a split. Raises ValueError where limits leave none."""
    for _ in range(MAX_DRAWS):
        problem = skill.make(rng, kind, limits)
        if split_of(skill.name, problem.key) == split:
            return problem
    raise ValueError(f"{skill.name}: no {kind!r} problem of the {split} split within {limits}; raise the limits")


def _pool(seed: int, size: Size) -> list[Record]:
    rng = Random(f"influray miniature pool {seed}")
    rows = []
    for skill in SKILLS:
        count = round(size.pool * skill.pool.share)
        own: list[tuple[str, str, list[str]]] = []
        for _ in range(count):
            if own and rng.random() < skill.pool.duplicates:
                question, answer, flaws = rng.choice(own)
                own.append((question, answer, [*(f for f in flaws if f != "duplicate"), "duplicate"]))
            else:
                own.append(_pool_row(rng, skill, size.limits))
        rows += [(skill.name, *row) for row in own]
    rng.shuffle(rows)
    return [
        {"id": f"pool-{i:06d}", "source": source, "flaws": flaws, "messages": _messages(question, answer)}
        for i, (source, question, answer, flaws) in enumerate(rows)
    ]


def _pool_row(rng: Random, skill: Skill, limits: Limits) -> tuple[str, str, list[str]]:
    problem = draw_problem(rng, skill, rng.choice(skill.kinds), "pool", limits)
    answer, form, flaws = problem.answer, skill.form, []
    if rng.random() < skill.pool.wrong:
        answer, flaws = skill.spoil(rng, answer), ["wrong"]
    if skill.is_task and rng.random() < POOL_VERBOSE:
        form, flaws = skill.verbose, [*flaws, "verbose"]
    return rng.choice(skill.wordings).text.format(**problem.parts), form.format(answer), flaws


def _examination(seed: int, skill: Skill, split: str, count: int, limits: Limits) -> list[Record]:
    """Return `count` right answers in the form that is wanted, kinds and wordings in turn, no question twice."""
    rng = Random(f"influray miniature {split} {skill.name} {seed}")
    records: list[Record] = []
    asked: set[str] = set()
    for i in range(count):
        wording = skill.wordings[i // len(skill.kinds) % len(skill.wordings)]
        for _ in range(MAX_DRAWS):
            problem = draw_problem(rng, skill, skill.kinds[i % len(skill.kinds)], split, limits)
            question = wording.text.format(**problem.parts)
            if question not in asked:
                break
        else:
            raise ValueError(f"{skill.name}: fewer than {count} different {split} questions within {limits}")
        asked.add(question)
        answer = skill.form.format(problem.answer)
        identity = f"{split}-{skill.name}-{i:04d}"
        messages = _messages(question, answer)
        records.append({"id": identity, "source": skill.name, "messages": messages, "answer": answer})
    return records


def _messages(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
