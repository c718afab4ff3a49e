"""Faults at random moments of small runs; every run must end with the bytes of an undisturbed one.

    python jobs/chaos.py --moments 100 --seed 0

A real cluster in network namespaces (local_cluster.py), run directories on a small disk of their own (a tmpfs). In each
run a fault strikes in featurize, one in score and one in select, each after a random part of the time that the step
takes undisturbed. A run whose driver ends is resumed by the same command. At the end the command is repeated once more,
and everything is compared: parts of features and attribution by content, selections, quarantine, and that no file or
receipt is there twice. Needs root and the command `ip`; about 10 s of CPU a run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from influray.miniature import BASE
from influray.miniature.world import Size, write_world
from influray.store.artifact import hash_file
from tests.cluster.chaos_drivers import Disk, Drivers
from tests.cluster.local_cluster import LocalCluster, Node, ended, unavailable

# How often, in proportion. "memory": Ray's monitor kills workers of a node whose memory looks full; "raylet": the
# process of Ray's that a node lives by is killed, and its workers with it; "node": the cable is pulled.
KINDS = {"actor": 3, "driver": 2, "sigterm": 2, "node": 1, "disk": 2, "truncate": 2, "memory": 2, "raylet": 1}
MEMORY_SECONDS = 5.0  # for the monitor to see that memory is full; it looks four times a second
STEPS = {
    "featurize": ("FeatureWorker",),
    "score": ("ScoreWorker",),
    "select": ("SelectionDriver", "read_ranges"),
}  # and the actors and tasks that are at work in it
ORDER = tuple(STEPS)
RUN_SECONDS = 300.0  # until a run counts as stuck
REPOSITORY = Path(__file__).resolve().parents[2]
# A node that does not answer for about 4 s is lost. Ray's own 30 s would be most of the time of a moment.
HEALTH = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
RESUMED = 0.3  # of a step's time, where a driver goes on with what another has begun
ENDS = {"driver": (0, -9), "sigterm": (0, 130), "disk": (0, 2), "truncate": (0, -signal.SIGBUS)}  # others: 0


@dataclass(frozen=True)
class Workload:
    """A small run. `rows` of the pool; with `columns` the selection reads the matrix by tasks."""

    name: str
    rows: int
    changes: Mapping[str, Any]
    columns: bool = False


WORKLOADS = (
    Workload(
        "gradient",
        64,
        {
            "model": {"base": str(BASE), "lora": {"r": 2, "targets": ["q_proj", "v_proj"]}},
            "warmup": {"fraction": 0.5, "epochs": 2, "batch_size": 8, "learning_rate": 0.01},
            "features": {"projector": {"name": "rademacher", "dimension": 128}, "rows_per_shard": 8},
            "attribution": {"scorer": "whitened", "options": {"ridge": 0.01}},
        },
    ),
    Workload(
        "ngram",
        4000,
        {
            "features": {"featurizer": "ngram", "rows_per_shard": 250},
            "attribution": {"scorer": "bm25"},
        },
    ),
    Workload(
        "columns",
        36_000,
        {
            "features": {"featurizer": "ngram", "rows_per_shard": 3000},
            "attribution": {"scorer": "dsir"},
        },
        columns=True,
    ),
)


@dataclass
class Fault:
    """One moment: `kind` strikes `step` after `fraction` of its usual time."""

    step: str
    kind: str
    fraction: float
    what: str = ""  # it hit; "" = the run had ended before
    ended: int = 0  # exit status of the driver that it struck


@dataclass
class Outcome:
    """What became of a run."""

    workload: str
    seed: int
    faults: list[Fault]
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)


class Chaos:
    """Runs with faults on one cluster."""

    def __init__(self, cluster: LocalCluster, folder: Path, disk: Disk, say: Any = print) -> None:
        self.cluster = cluster
        self.folder = folder
        self.disk = disk
        self.drivers = Drivers(cluster)
        self._say = say
        self._count = 0
        self._cut: list[Node] = []
        self._base: dict[str, Path] = {}
        self._expected: dict[str, dict[str, Any]] = {}
        self._seconds: dict[str, dict[str, float]] = {}

    def prepare(self, workload: Workload) -> None:
        """Make the data and the warmup of a workload, its undisturbed run, and the time of each step."""
        base = self.folder / workload.name
        world = base / "world"
        write_world(world, 0, Size(pool=workload.rows, targets=4, test=2))
        tasks = sorted(path.stem for path in (world / "targets").glob("*.jsonl"))
        tree = {
            "model": {"base": str(BASE)},
            "data": {
                "root": str(world),
                "pool": "pool.jsonl",
                "max_tokens": 128,
                "targets": {task: f"targets/{task}.jsonl" for task in tasks},
            },
            "selectors": [
                {"name": "bids", "method": "bids", "budget": 0.25},
                {"name": "top", "method": "instance_max", "budget": 0.1},
            ],
            "resources": {"workers": 2},
            **workload.changes,
        }
        (base / "config.yaml").write_text(yaml.safe_dump(tree))
        self._base[workload.name] = base
        run = base / "run"
        self._must(self._argv(workload, run), base / "log", workload)
        steps = json.loads((run / "run.json").read_text())["steps"]
        self._seconds[workload.name] = {step: steps[step]["seconds"] for step in STEPS}
        self._expected[workload.name], problems = content(run)
        for folder in ("features", "fit", "attribution", "selection"):
            shutil.rmtree(run / folder, ignore_errors=True)
        if problems:
            raise RuntimeError(f"{workload.name}: {'; '.join(problems)}")
        self._say(f"{workload.name}: undisturbed {self._seconds[workload.name]}")

    def run(self, workload: Workload, faults: list[Fault], seed: int) -> Outcome:
        """Carry out a run with faults, in the order of the steps, and compare."""
        outcome = Outcome(workload.name, seed, faults)
        started = time.monotonic()
        self._count += 1
        run = self._copy(workload, f"run-{self._count}")
        log = self.folder / f"run-{self._count}.log"
        draw = random.Random(seed)
        waiting = list(faults)
        try:
            while True:
                struck = self._drive(workload, run, log, waiting, draw)
                status = self.drivers.wait()
                self.disk.free()
                if struck is not None:
                    struck.ended = status
                allowed = (0,) if struck is None else ENDS.get(struck.kind, (0,))
                if status not in allowed:
                    outcome.problems.append(f"the driver ended with {status}: {_last(log)}")
                if struck is not None and struck.kind == "disk" and status == 2 and "no space left" not in _last(log):
                    outcome.problems.append(f"a full disk is not named: {_last(log)}")
                if status == 0 or outcome.problems or time.monotonic() - started > RUN_SECONDS:
                    break
            self._replace_cut_nodes()  # whoever still writes there has ended now
            if not outcome.problems:
                self._must(self._argv(workload, run), log, workload)
                found, outcome.problems = content(run)
                outcome.problems += differences(self._expected[workload.name], found)
        except (RuntimeError, AssertionError) as error:
            outcome.problems.append(str(error))
            self._replace_cut_nodes()
        outcome.seconds = time.monotonic() - started
        if not outcome.problems:
            shutil.rmtree(run)
            log.unlink()
        return outcome

    def _drive(
        self, workload: Workload, run: Path, log: Path, waiting: list[Fault], draw: random.Random
    ) -> Fault | None:
        """Start a driver and strike while it runs; return the last fault that struck it."""
        log.touch()
        before = log.stat().st_size
        pid = self.drivers.start(self._argv(workload, run), log, workload.columns)
        struck: Fault | None = None
        began: dict[str, float] = {}
        deadline = time.monotonic() + RUN_SECONDS
        while not ended(pid):
            time.sleep(0.01)
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                self.drivers.wait()  # or its answer is taken for that of the next one
                raise RuntimeError(f"stuck: {_last(log)}")
            text = log.read_bytes()[before:].decode(errors="replace")
            for step in STEPS:
                if f"{step}: begins" in text:
                    began.setdefault(step, time.monotonic())
            if not waiting or (struck is not None and struck.kind in ("driver", "sigterm", "disk")):
                continue
            fault = waiting[0]
            moment = began.get(fault.step)
            due = fault.fraction * self._seconds[workload.name][fault.step] * (RESUMED if before else 1)
            if moment is not None and time.monotonic() - moment >= due:
                fault.what = self._strike(fault, pid, run, draw)
                if fault.what:
                    struck = waiting.pop(0)
                elif any(step in began for step in ORDER[ORDER.index(fault.step) + 1 :]):
                    waiting.pop(0)  # nothing of its kind was there while the step lasted
        return struck

    def _strike(self, fault: Fault, pid: int, run: Path, draw: random.Random) -> str:
        """Let a fault happen and return what it hit, "" where there is nothing to hit yet."""
        kind = fault.kind
        if kind in ("driver", "sigterm"):
            try:
                os.kill(pid, signal.SIGKILL if kind == "driver" else signal.SIGTERM)
            except ProcessLookupError:  # it has just ended by itself
                return ""
            return "driver"
        if kind == "disk":
            self.disk.fill()
            return "disk"
        if kind == "truncate":
            return _truncate(run, draw)
        every = [(node, actor, name) for node in self._alive() for actor, name in _actors(self.cluster.pids(node))]
        found = [one for one in every if one[2] in STEPS[fault.step]]
        if not found:
            return ""
        node, actor, name = draw.choice(found)
        if (run / "fit").is_dir() and not (run / "fit" / "manifest.json").exists() and name == "ScoreWorker":
            name = "ScoreWorker in a pass"
        if kind in ("node", "raylet") and len(self._alive()) < 2:
            return ""  # without a node there is nothing to go on with
        if kind == "memory":
            return f"{name} for memory" if self._starve(node, actor) else ""
        if kind == "raylet":
            for pid in self.cluster.pids(node):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet":
                        os.kill(pid, signal.SIGKILL)
            self._cut.append(node)
            return f"raylet of {name}"
        if kind == "actor":
            with contextlib.suppress(ProcessLookupError):
                os.kill(actor, signal.SIGKILL)
            return name
        self.cluster.cut(node)
        self._cut.append(node)
        return f"node with {name}"

    def _starve(self, node: Node, actor: int) -> bool:
        """Let a node's memory look full until an actor there is killed for it; return whether it was."""
        self.cluster.fill_memory(node, True)
        deadline = time.monotonic() + MEMORY_SECONDS
        while not ended(actor) and time.monotonic() < deadline:
            time.sleep(0.02)
        self.cluster.fill_memory(node, False)
        return ended(actor)

    def _alive(self) -> list[Node]:
        return [node for node in self.cluster.nodes.values() if node is not self.cluster.head and node not in self._cut]

    def _replace_cut_nodes(self) -> None:
        for node in self._cut:
            self.cluster.kill(node)
        if self._cut:
            self.cluster.add_nodes(len(self._cut), 1)
        self._cut.clear()

    def _copy(self, workload: Workload, name: str) -> Path:
        run = self.disk.path / name
        shutil.rmtree(run, ignore_errors=True)
        shutil.copytree(self._base[workload.name] / "run", run)
        return run

    def _argv(self, workload: Workload, run: Path) -> list[str]:
        return ["select", str(self._base[workload.name] / "config.yaml"), "--run-dir", str(run)]

    def _must(self, argv: Sequence[str], log: Path, workload: Workload) -> None:
        self.drivers.start(argv, log, workload.columns)
        status = self.drivers.wait()
        if status:
            raise RuntimeError(f"influray {' '.join(argv)} ended with {status}: {_last(log)}")


def content(run: Path) -> tuple[dict[str, Any], list[str]]:
    """Return what a run has made, by content, and what is there twice, not whole, or left over."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for manifest in [*sorted(run.glob("features/*/*/manifest.json")), run / "attribution" / "manifest.json"]:
        folder, name = manifest.parent, str(manifest.parent.relative_to(run))
        parts = json.loads(manifest.read_text())["parts"]
        found[name] = [(part["key"], part["sha256"], part["rows"]) for part in parts]
        named = {part["file"] for part in parts if part["file"]}
        problems += [f"{name}/{p['file']} is not whole" for p in parts if p["file"] and _hash(folder, p) != p["sha256"]]
        # A hidden file is no part of anything; one that a killed process left goes with the next commit.
        there = {path.name for path in folder.glob("part-*")}
        problems += [f"{name}/{extra} is left over" for extra in sorted(there - named)]
        receipts = {path.stem for path in (folder / "_receipts").iterdir()}
        if receipts != {part["key"] for part in parts}:
            problems.append(f"{name}: {len(receipts)} receipts of {len(parts)} parts")
    for path in (*sorted(run.glob("selection/*/selected.jsonl")), *sorted(run.glob("selection/*/selection.parquet"))):
        found[str(path.relative_to(run))] = hash_file(path)
    found["attribution/targets.arrow"] = hash_file(run / "attribution" / "targets.arrow")
    found["quarantine.jsonl"] = hash_file(run / "quarantine.jsonl")
    problems += [f"{path} is left over" for path in (run / "selection").glob(".*")]
    return found, problems


def differences(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Return what is not the same in two runs."""
    return [f"{name} differs" for name in sorted({*expected, *found}) if expected.get(name) != found.get(name)]


def _hash(folder: Path, part: Mapping[str, Any]) -> str:
    path = folder / part["file"]
    return hash_file(path) if path.exists() else ""


def _truncate(run: Path, draw: random.Random) -> str:
    """Cut the end off a committed file of features, sums or attribution and return which kind, "" = there is none."""
    files = []
    for receipt in sorted(run.glob("*/**/_receipts/*.json")):
        with contextlib.suppress(FileNotFoundError, ValueError):  # it is being swept, or written
            path = receipt.parent.parent / json.loads(receipt.read_text())["file"]
            if receipt.relative_to(run).parts[0] != "data" and path.is_file() and path.stat().st_size:
                files.append(path)
    if not files:
        return ""
    path = draw.choice(files)
    with contextlib.suppress(FileNotFoundError):
        os.truncate(path, draw.randrange(path.stat().st_size))
    return f"a file of {path.relative_to(run).parts[0]}"


def _actors(pids: Sequence[int]) -> Iterator[tuple[int, str]]:
    """Yield (pid, class or function) of the actors and tasks among processes."""
    for pid in pids:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode(errors="replace")
            if title.startswith("ray::"):
                yield pid, re.split(r"[.:(]", title.removeprefix("ray::"))[0]


def _last(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return " / ".join(lines[-3:])[-600:]


def draw_faults(draw: random.Random, kinds: Sequence[str] = tuple(KINDS), each: int = 1) -> list[Fault]:
    """Return `each` faults for each step, of random kinds and moments."""
    chosen = iter(draw.choices(kinds, [KINDS[kind] for kind in kinds], k=each * len(STEPS)))
    found = [Fault(step, next(chosen), draw.random()) for step in STEPS for _ in range(each)]
    return sorted(found, key=lambda fault: (ORDER.index(fault.step), fault.fraction))


def table(outcomes: Sequence[Outcome]) -> str:
    """Return what struck how often, and how many of these runs ended with the same bytes, as a Markdown table."""
    lines = ["| fault | moments | featurize | score | select | same bytes |", "|---|---|---|---|---|---|"]
    for kind in KINDS:
        struck = [(f, o) for o in outcomes for f in o.faults if f.kind == kind and f.what]
        by_step = Counter(fault.step for fault, _ in struck)
        same = sum(not outcome.problems for _, outcome in struck)
        counts = " | ".join(str(by_step[step]) for step in STEPS)
        lines.append(f"| {kind} | {len(struck)} | {counts} | {same} |")
    struck = [f for o in outcomes for f in o.faults if f.what]
    good = sum(bool(f.what) and not o.problems for o in outcomes for f in o.faults)
    by_step = Counter(fault.step for fault in struck)
    lines.append(f"| all | {len(struck)} | {' | '.join(str(by_step[step]) for step in STEPS)} | {good} |")
    hit = Counter(f.what for f in struck)
    return "\n".join([*lines, "", "hit: " + ", ".join(f"{what} {count}" for what, count in hit.most_common())])


@contextlib.contextmanager
def chaos(nodes: int = 3, say: Any = print) -> Iterator[Chaos]:
    """Yield a cluster to run on, with its disk and drivers."""
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    environment = {**HEALTH, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment["RAY_worker_niceness"] = "0"
    # Before the nodes: each sees the mounts that there were when it was started.
    with (
        contextlib.closing(Disk(folder / "disk")) as disk,
        LocalCluster(environment, ["--num-cpus=0", "--include-dashboard=false"], memory=True) as cluster,
    ):
        cluster.add_nodes(nodes, 1)
        one = Chaos(cluster, folder, disk, say)
        with contextlib.closing(one.drivers):
            yield one
    say(f"logs of runs that went wrong, if any, are in {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moments", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--each", type=int, default=1, help="moments in each step of a run")
    parser.add_argument("--workloads", nargs="+", default=[workload.name for workload in WORKLOADS])
    options = parser.parse_args()
    if reason := unavailable():
        parser.error(reason)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the cluster is taken down whatever ends this
    outcomes: list[Outcome] = []
    workloads = [workload for workload in WORKLOADS if workload.name in options.workloads]
    with contextlib.suppress(KeyboardInterrupt), chaos(say=lambda text: print(text, flush=True)) as one:
        for workload in workloads:
            one.prepare(workload)
        seed = options.seed
        while sum(bool(f.what) for o in outcomes for f in o.faults) < options.moments:
            workload = workloads[seed % len(workloads)]
            outcome = one.run(workload, draw_faults(random.Random(seed), options.kinds, options.each), seed)
            outcomes.append(outcome)
            told = ", ".join(f"{f.kind} in {f.step} ({f.what or 'missed'}, exit {f.ended})" for f in outcome.faults)
            verdict = "; ".join(outcome.problems) or "same bytes"
            print(f"seed {seed} {workload.name}: {told}: {verdict} ({outcome.seconds:.0f} s)", flush=True)
            seed += 1
    print(table(outcomes))
    return int(any(outcome.problems for outcome in outcomes))
