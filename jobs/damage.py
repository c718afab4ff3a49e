"""Damage every kind of file of a finished run in every way, and see what each verb makes of it.

    python jobs/damage.py --out damage.json [--verbs PATTERN] [--kinds PATTERN] [--minutes 30] [--fuzz 200]

For each kind of file x {bit flip, truncation, deletion, empty, folder in its place} x verb the outcome must be one of:
repaired (what the verb makes is what it was), refused by name (an error for users that names the file, exit 2), or
without effect (the answer is byte for byte that of the whole run). Anything else is printed, and the exit status is 1.
The run is the miniature at its smallest, with tune, evaluate, index, audit and report. Verbs that read run in this
process; those that carry out steps run in this process too, over one private Ray.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import json
import math
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from influray.protocols import USER_ERRORS
from jobs.damage_readers import READERS

# One file of each kind; the first that matches is damaged.
KINDS = (
    *("config.yaml", "run.json", "quarantine.jsonl", "quarantine.sha256", "lease.json", "logs/driver.log"),
    *(f"data/{split}/{name}" for split in ("pool", "target") for name in ("manifest.json", "part-*", "_receipts/*")),
    *("data/test/manifest.json", "data/test/part-*"),
    *("warmup/manifest.json", "warmup/checkpoint-1/state.json", "warmup/checkpoint-1/moments.safetensors"),
    *(f"warmup/checkpoint-1/adapter/adapter_{name}" for name in ("config.json", "model.safetensors")),
    *(f"features/{s}/checkpoint-1/{name}" for s in ("pool", "target") for name in ("manifest.json", "part-*")),
    *("features/pool/checkpoint-1/_receipts/*", "attribution/_receipts/*"),
    *("attribution/manifest.json", "attribution/part-*", "attribution/targets.arrow"),
    *(f"selection/bids/{name}" for name in ("manifest.json", "selected.jsonl", "selection.json", "selection.parquet")),
    *(f"tune/bids/seed-0/{name}" for name in ("manifest.json", "adapter/adapter_config.json")),
    "tune/bids/seed-0/adapter/adapter_model.safetensors",
    *("evaluation/bids/seed-0.json", "evaluation/base/seed-0.json"),
    *("index/manifest.json", "index/shard-*", "index/moments.arrow"),
    *("validate/lds.json", "validate/recall.json", "validate/retrainings/*", "validate/scorers/dot/attribution/part-*"),
    *(f"validate/features/*/pool/checkpoint-1/{name}" for name in ("manifest.json", "part-*")),
    *("report/index.html", "report/explorer.html", "report/audit.json"),
)
FOLDERS = (
    *("data", "data/pool", "warmup", "warmup/checkpoint-1", "features", "features/pool/checkpoint-1", "attribution"),
    *("selection", "selection/bids", "tune", "tune/bids/seed-0/adapter", "evaluation", "evaluation/bids", "index"),
    *("validate", "validate/retrainings", "validate/scorers", "report", "logs"),
)
WRITERS = ("run", "score", "select", "tune", "evaluate", "validate", "report")
UNTIL = {"run": "report", "report": "report-only"}
SMALLEST = {
    **{"features.rows_per_shard": 80, "tune.steps": 2, "tune.selections": ["bids"], "evaluation.max_new_tokens": 4},
    **{"validate.experiments": ["lds", "recall"], "validate.scorers": ["dot", "representation"], "validate.seeds": [0]},
    **{"validate.lds.subsets": 8, "validate.tune": {"warmup_ratio": 0.0}},
}
RUN_DIR = re.compile(rb"^run_dir:.*\n(?: .*\n)*", re.MULTILINE)
NOT_COMPARED = ("lease.json", "logs", "run.json", "report", "_receipts", "manifest.json", "state.json")


def flip(path: Path, seed: int) -> None:
    data = bytearray(path.read_bytes() or b"x")
    place = random.Random(seed).randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def truncate(path: Path, seed: int) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def delete(path: Path, seed: int) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def empty(path: Path, seed: int) -> None:
    path.write_bytes(b"")


def folder(path: Path, seed: int) -> None:
    path.unlink()
    (path / "something").mkdir(parents=True)


def file(path: Path, seed: int) -> None:
    shutil.rmtree(path)
    path.write_bytes(b"something")


DAMAGES: dict[str, Callable[[Path, int], None]] = {
    "bit flip": flip,
    "truncation": truncate,
    "deletion": delete,
    "empty": empty,
    "folder in its place": folder,
}
OF_FOLDERS: dict[str, Callable[[Path, int], None]] = {"deletion": delete, "file in its place": file}


def finished_run(root: Path) -> tuple[Path, Path]:
    """Make the smallest finished run; return (run directory, config)."""
    from influray import miniature, pipeline
    from influray.config import dump_config, load_config

    config = miniature.prepare(root / "world", size="small")
    config.write_text(dump_config(load_config(config, {**SMALLEST, "run_dir": str(root / "run")})))
    pipeline.run(config)
    pipeline.index(root / "run", "flat")
    pipeline.audit(root / "run")
    pipeline.validate(root / "run")
    pipeline.run(config)  # the report says the audit and the validation too
    return root / "run", config


def content(run_dir: Path) -> dict[str, list[str]]:
    """Return what a run has made: folder and kind of file -> sha256 of each; names of parts are each attempt's own."""
    found = defaultdict(list)
    for path in sorted(run_dir.rglob("*")):
        name = path.relative_to(run_dir).as_posix()
        if path.is_file() and not any(piece in NOT_COMPARED or piece.startswith(".") for piece in name.split("/")):
            key = name.rpartition("/")[0] + "/*" if path.name.startswith("part-") else name
            made = path.read_bytes()
            if name == "config.yaml":
                made = RUN_DIR.sub(b"", made)  # a copy's tells where the copy lies
            found[key].append(hashlib.sha256(made).hexdigest())
    return {key: sorted(values) for key, values in found.items()}


def names(error: Exception, damaged: str) -> bool:
    """Return whether an error tells of the damaged file, a folder around it, or what is in it."""
    said = str(error)
    pieces = damaged.split("/")
    around = ["/".join(pieces[: n + 1]) for n in range(len(pieces))]
    return (
        any(f"/{one}" in said for one in around)
        or pieces[-1] in said
        or ("run.json" in said and damaged in ("config.yaml", "run.json"))
    )


def of_reader(verb: str, run_dir: Path, config: Path, damaged: str, whole: bytes) -> str:
    """Return the outcome of a verb that reads."""
    try:
        answer = READERS[verb](run_dir, config)
    except USER_ERRORS as error:
        return "refused" if names(error, damaged) else f"REFUSED WITHOUT A NAME: {error}"
    except Exception:  # noqa: BLE001 - what it is, is the outcome
        return "TRACEBACK: " + traceback.format_exc()[-700:]
    if answer == whole:
        return "without effect"
    return "ANOTHER ANSWER" if verb not in ("plan", "index") else plain_change(verb, run_dir, damaged)


def plain_change(verb: str, run_dir: Path, damaged: str) -> str:
    """A plan that says what is to be done again names the damage; an index that was built again is another manifest."""
    if verb == "plan":
        return "refused"
    return "repaired" if damaged.startswith("index") else "ANOTHER ANSWER"


def of_writer(verb: str, run_dir: Path, config: Path, damaged: str, whole: dict[str, list[str]]) -> str:
    """Return the outcome of a verb that carries out steps."""
    from influray import pipeline

    try:
        if verb == "validate":
            pipeline.validate(run_dir)
        else:
            pipeline.run(config, run_dir=run_dir, until=UNTIL.get(verb, verb))
    except USER_ERRORS as error:
        return "refused" if names(error, damaged) else f"REFUSED WITHOUT A NAME: {error}"
    except Exception:  # noqa: BLE001 - what it is, is the outcome
        return "TRACEBACK: " + traceback.format_exc()[-700:]
    now = content(run_dir)
    wrong = {key for key in whole if whole[key] != now.get(key)}
    theirs = {key for key in wrong if made_by(verb, run_dir / key.removesuffix("/*"), config)}
    if theirs:
        return f"NOT REPAIRED: {', '.join(sorted(theirs))}"
    return "without effect" if wrong else "repaired"


def made_by(verb: str, path: Path, config: Path) -> bool:
    """Return whether a verb makes a file of a run directory; `run` makes all but what `validate` does."""
    from influray.config import load_config
    from influray.steps import steps_until
    from influray.store.checks import step_of

    step = step_of(path)
    if verb in ("run", "validate"):
        return (step == "validate") == (verb == "validate")
    return step in [one.name for one in steps_until(UNTIL.get(verb, verb), load_config(config))]


def cases(source: Path, kinds: str) -> Iterator[tuple[str, str, str, Callable[[Path, int], None]]]:
    """Yield (kind, file or folder, damage, what does it)."""
    for kind in KINDS:
        if fnmatch.fnmatch(kind, kinds):
            path = min(source.glob(kind))
            for name, how in DAMAGES.items():
                yield kind, path.relative_to(source).as_posix(), name, how
    for kind in FOLDERS:
        if fnmatch.fnmatch(kind, kinds):
            for name, how in OF_FOLDERS.items():
                yield f"{kind}/", kind, name, how


def wanted(verb: str, patterns: str) -> bool:
    """Return whether a verb is among patterns with commas between them."""
    return any(fnmatch.fnmatch(verb, pattern) for pattern in patterns.split(","))


def try_all(arguments: argparse.Namespace, home: Path, root: Path) -> list[dict[str, Any]]:
    """Return every case with its outcome; the whole run lies in `home`, its copies in `root`."""
    source, config = home / "run", home / "world" / "config.yaml"
    if not (source / "report" / "audit.json").exists():
        source, config = finished_run(home)
    verbs = [verb for verb in (*READERS, *WRITERS) if wanted(verb, arguments.verbs)]
    answers = {verb: READERS[verb](_copy(source, root), config) for verb in verbs if verb in READERS}
    made, found = content(source), []
    pairs = [(number, case, verb) for number, case in enumerate(cases(source, arguments.kinds)) for verb in verbs]
    random.Random(arguments.seed).shuffle(pairs)  # so that an end before all are done leaves no kind out
    until = time.monotonic() + 60 * arguments.minutes
    for number, (kind, damaged, name, how), verb in pairs:
        if time.monotonic() > until:
            print(
                f"stopped after {arguments.minutes:g} minutes, with {len(found)} cases of {len(pairs)}", file=sys.stderr
            )
            break
        run_dir = _copy(source, root)
        how(run_dir / damaged, number)
        if verb in WRITERS:
            outcome = of_writer(verb, run_dir, config, damaged, made)
        else:
            outcome = of_reader(verb, run_dir, config, damaged, answers[verb])
        found.append(told(kind, damaged, name, verb, outcome))
        shutil.rmtree(run_dir.parent)
    return found + fuzz(arguments, root, source, config, answers)


def told(kind: str, damaged: str, name: str, verb: str, outcome: str) -> dict[str, Any]:
    """Return a case with its outcome; one that must not be is printed."""
    if outcome[:3].isupper():
        print(f"{damaged} | {name} | {verb}: {outcome}", file=sys.stderr, flush=True)
    return {"kind": kind, "damage": name, "verb": verb, "outcome": outcome}


def fuzz(
    arguments: argparse.Namespace, root: Path, source: Path, config: Path, answers: dict[str, bytes]
) -> list[dict[str, Any]]:
    """Flip 1 to 3 bits of a random file each time and ask a random reader."""
    generator, found = random.Random(arguments.seed), []
    files = sorted(path for path in source.rglob("*") if path.is_file() and path.stat().st_size)
    for _ in range(arguments.fuzz if answers else 0):
        run_dir = _copy(source, root)
        name = generator.choice(files).relative_to(source).as_posix()
        for _ in range(generator.randint(1, 3)):
            flip(run_dir / name, generator.randrange(2**32))
        verb = generator.choice(list(answers))
        outcome = of_reader(verb, run_dir, config, name, answers[verb])
        found.append(told("any file", name, "fuzz", verb, outcome))
        shutil.rmtree(run_dir.parent)
    return found


def table(found: list[dict[str, Any]]) -> str:
    """Return the counts of outcomes, verb by verb, as Markdown."""
    columns = ("repaired", "refused", "without effect", "wrong")
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for one in found:
        outcome = one["outcome"] if one["outcome"] in columns else "wrong"
        counts[one["verb"] + (" (fuzz)" if one["damage"] == "fuzz" else "")][outcome] += 1
    lines = [f"| verb | cases | {' | '.join(columns)} |", f"|---|{'---|' * (len(columns) + 1)}"]
    for verb, count in counts.items():
        lines.append(f"| {verb} | {count.total()} | {' | '.join(str(count[name]) for name in columns)} |")
    return "\n".join(lines)


_copies = iter(range(10**9))


def _copy(source: Path, root: Path) -> Path:
    place = root / f"copy-{next(_copies)}" / "run"
    shutil.copytree(source, place)
    return place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write every case as JSON")
    parser.add_argument("--verbs", default="*", help="patterns with commas: only these")
    parser.add_argument("--kinds", default="*", help="a pattern: only these kinds of file")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop then; the order is drawn")
    parser.add_argument("--fuzz", type=int, default=0, help="random flips in random files, beside")
    parser.add_argument("--folder", type=Path, help="keep the whole run here, or take the one that is here")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import torch
    from transformers.utils import logging

    from influray.config import ResourcesConfig
    from influray.runtime.cluster import connect

    torch.set_num_threads(1)  # the model is tiny
    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    there = arguments.folder is not None and (arguments.folder / "run" / "report" / "audit.json").exists()
    needed = not there or any(wanted(verb, arguments.verbs) for verb in WRITERS)
    cluster = connect(ResourcesConfig()) if needed else contextlib.nullcontext()
    with tempfile.TemporaryDirectory(prefix="damage-") as root, cluster:
        found = try_all(arguments, (arguments.folder or Path(root)).resolve(), Path(root))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1))
    print(table(found))
    sys.exit(int(any(one["outcome"][:3].isupper() for one in found)))


if __name__ == "__main__":
    main()
