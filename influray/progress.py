"""What a run says of itself: log files, a line every ten seconds or live bars, and metrics.jsonl.

People get the console: bars where it is a terminal, plain lines where it is not. Everything else goes to RUN/logs:
driver.log for reading, metrics.jsonl for plotting. Nothing here knows Ray.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.formatting import visible
from influray.job_status import JobStatus, jobs_line
from influray.store.mirror import follow

if TYPE_CHECKING:
    from rich.console import Console

logger = logging.getLogger(__name__)

INTERVAL_SECONDS = 10.0
METRICS = "metrics.jsonl"
DRIVER_LOG = "driver.log"
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


_shown = logging.INFO  # from which level on consoles show what is logged


@contextlib.contextmanager
def show_from(level: int) -> Iterator[None]:
    """Let consoles show what is logged from this level on, while the block runs; above INFO they show no progress."""
    global _shown
    before, _shown = _shown, level
    try:
        yield
    finally:
        _shown = before


class ShownFormatter(logging.Formatter):
    """Log lines in which characters that steer a terminal are shown: logs are read in one."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The numbers of a step at one moment. Rates are over the time since the work was announced."""

    step: str
    seconds: float
    done: int
    total: int | None
    unit: str
    rows: int
    tokens: int
    rows_per_second: float
    tokens_per_second: float
    retries: int
    eta_seconds: float | None
    workers: dict[str, float]  # name -> rows a second while it computed
    note: str
    memory_kills: int = 0  # workers that were killed because the machine ran out of memory
    side_by_side: int | None = None  # how many may run since then

    def line(self) -> str:
        """Return the numbers as one line for people; what is zero or unknown is left out."""
        parts = []
        if self.total is not None:
            parts.append(f"{self.done}/{self.total} {self.unit}")
        elif self.done:
            parts.append(f"{self.done} {self.unit}")
        if self.rows:
            parts.append(f"{self.rows} rows, {self.rows_per_second:.1f} rows/s")
        if self.tokens:
            parts.append(f"{self.tokens_per_second:.0f} tokens/s")
        if self.retries:
            parts.append(f"{self.retries} {'retry' if self.retries == 1 else 'retries'}")
        if self.memory_kills:
            parts.append(f"{self.side_by_side} at a time after {self.memory_kills} kills for memory")
        if self.note:
            parts.append(self.note)
        parts.append(f"{clock(self.seconds)} so far" if self.eta_seconds is None else f"ETA {clock(self.eta_seconds)}")
        return f"{self.step}: {', '.join(parts)}"


class StepProgress:
    """The counters of one step; every method may be called from any thread."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._started = self._announced = time.monotonic()
        self._total: int | None = None
        self._unit = "shards"
        self._before = self._done = self._rows = self._tokens = self._retries = 0
        self._workers: dict[str, tuple[int, float]] = {}  # rows, seconds
        self._note = ""
        self._memory_kills, self._side_by_side = 0, None
        self._running: Sequence[JobStatus] = ()
        self._one_job = False  # whose units are counted

    def expect(self, total: int, unit: str = "shards", done: int = 0) -> None:
        """Announce the work: `total` units, `done` of which were there before and count in no rate."""
        with self._lock:
            self._announced = time.monotonic()
            self._total, self._unit, self._before, self._done = total, unit, done, done

    def advance(self, units: int = 1, rows: int = 0, tokens: int = 0) -> None:
        with self._lock:
            self._done += units
            self._rows += rows
            self._tokens += tokens

    def note(self, text: str) -> None:
        """Set what is said beside the numbers."""
        with self._lock:
            self._note = text

    def on_receipt(self, task: object, receipt: Any) -> None:
        """Take in a committed shard: its details may hold rows, tokens, seconds and worker."""
        details = receipt.details
        rows = int(details.get("rows", receipt.rows))
        self.advance(1, rows, int(details.get("tokens", 0)))
        if "worker" in details:
            with self._lock:
                before = self._workers.get(details["worker"], (0, 0.0))
                self._workers[details["worker"]] = (before[0] + rows, before[1] + float(details.get("seconds", 0)))

    def on_event(self, event: Any) -> None:
        """Count an event of the shard pool."""
        if event.kind in ("retry", "shrunk"):
            with self._lock:
                self._retries += 1
        elif event.kind == "memory":
            with self._lock:
                self._memory_kills, self._side_by_side = self._memory_kills + 1, event.side_by_side

    def on_status(self, status: Any) -> None:
        """Show what the selection driver is at."""
        with self._lock:
            self._done = self._before + len(status.done)
            if status.memory_kills:
                self._memory_kills, self._side_by_side = status.memory_kills, status.side_by_side
            parts = [f"{status.running} for {clock(status.seconds)}"] if status.running else []
            if status.running and status.budget:
                parts.append(f"{status.chosen}/{status.budget} rows chosen, {status.rows_per_second:.0f} rows/s")
            self._note = ", ".join(parts)

    def on_jobs(self, finished: int, running: Sequence[JobStatus]) -> None:
        """Show how far jobs are: how many are finished since they were announced, and those that run.

        Where none were announced there is one, and its own steps are counted, from when it is heard of.
        """
        with self._lock:
            self._running = () if self._one_job else [job for job in running if job.total]
            self._note = jobs_line(running)
            if self._total is None and self._running:
                (job,), self._one_job, self._running = self._running, True, ()
                self._announced, self._total, self._unit, self._before = time.monotonic(), job.total, job.unit, job.done
            if not self._one_job:
                self._done = self._before + finished
                return
            self._done = running[0].done if running else self._total or 0
            loss = running[0].loss if running else None
            self._note = "" if loss is None else f"loss {loss:.3f}"

    def snapshot(self) -> Snapshot:
        """Return the numbers as they are now."""
        with self._lock:
            now = time.monotonic()
            elapsed = max(now - self._announced, 1e-9)
            part = sum(job.share for job in self._running)
            fresh = self._done - self._before + part - sum(job.before for job in self._running)
            eta = None
            if self._total is not None and fresh > 0:
                eta = max(0.0, self._total - self._done - part) * elapsed / fresh
            return Snapshot(
                step=self.name,
                seconds=now - self._started,
                done=self._done,
                total=self._total,
                unit=self._unit,
                rows=self._rows,
                tokens=self._tokens,
                rows_per_second=self._rows / elapsed,
                tokens_per_second=self._tokens / elapsed,
                retries=self._retries,
                eta_seconds=eta,
                workers={name: rows / max(seconds, 1e-9) for name, (rows, seconds) in sorted(self._workers.items())},
                note=self._note,
                memory_kills=self._memory_kills,
                side_by_side=self._side_by_side,
            )


class Progress:
    """The progress of a run, step after step. `current` is the step that is running, and refuses none."""

    def __init__(self, logs: Path, bars: _Bars | None) -> None:
        self.current = StepProgress("start")
        self._metrics = logs / METRICS
        self._bars = bars
        self._write = threading.Lock()

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[StepProgress]:
        """Count under `name` while the block runs, and write the last numbers at its end."""
        outer, self.current = self.current, StepProgress(name)
        logger.debug("%s: begins", name)
        if self._bars is not None:
            self._bars.begin(self.current)
        try:
            yield self.current
        finally:
            self.record()
            if self._bars is not None:
                self._bars.end(self.current)
            self.current = outer

    def record(self) -> Snapshot:
        """Append the numbers of the current step to metrics.jsonl and return them."""
        snapshot = self.current.snapshot()
        entry: dict[str, Any] = {"time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")}
        for name in Snapshot.__slots__:
            value = getattr(snapshot, name)
            entry[name] = round(value, 4) if isinstance(value, float) else value
        entry["workers"] = {worker: round(rate, 4) for worker, rate in snapshot.workers.items()}
        with self._write, open(self._metrics, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")  # one write: a line is there whole or not at all
        return snapshot


@contextlib.contextmanager
def open_progress(
    logs: str | Path, console: Console | None = None, interval: float = INTERVAL_SECONDS
) -> Iterator[Progress]:
    """Log to the folder `logs` and to the console while the block runs, and yield the run's Progress.

    Without a console (the Python API) only files are written; the host program's own logging is as it was.
    """
    logs = Path(logs)
    logs.mkdir(parents=True, exist_ok=True)
    for name in (DRIVER_LOG, METRICS):
        follow(logs / name)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logging(logs, console))
        live = console is not None and console.is_terminal and _shown <= logging.INFO
        bars = stack.enter_context(_live_bars(console)) if console is not None and live else None
        progress = Progress(logs, bars)
        stop = threading.Event()
        thread = threading.Thread(target=_report, args=(progress, bars is None, interval, stop), daemon=True)
        thread.start()
        try:
            yield progress
        finally:
            stop.set()
            thread.join()


def clock(seconds: float) -> str:
    """Return a duration as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _report(progress: Progress, plain: bool, interval: float, stop: threading.Event) -> None:
    while not stop.wait(interval):
        if progress.current.name == "start":
            continue
        snapshot = progress.record()
        if plain:
            logger.info("%s", snapshot.line())


@contextlib.contextmanager
def _logging(logs: Path, console: Console | None) -> Iterator[None]:
    ours = logging.getLogger("influray")
    handlers: list[logging.Handler] = [logging.FileHandler(logs / DRIVER_LOG, encoding="utf-8")]
    handlers[0].setFormatter(ShownFormatter(LOG_FORMAT))
    if console is not None:
        handlers.append(_ConsoleHandler(console))
    level = ours.level
    ours.setLevel(min(logging.INFO, _shown))
    for handler in handlers:
        ours.addHandler(handler)
    try:
        yield
    finally:
        ours.setLevel(level)
        for handler in handlers:
            ours.removeHandler(handler)
            handler.close()


class _ConsoleHandler(logging.Handler):
    """Log lines on the console, above the bars where there are any."""

    def __init__(self, console: Console) -> None:
        super().__init__(_shown)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "" if record.levelno < logging.WARNING else f"{record.levelname.lower()}: "
        self._console.print(f"{prefix}{visible(record.getMessage())}", markup=False, highlight=False, soft_wrap=True)


class _Bars:
    """One live bar a step, fed by looking at its counters whenever the screen is drawn."""

    def __init__(self, console: Console) -> None:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        owner = self
        self._lock = threading.Lock()
        self._tasks: dict[StepProgress, Any] = {}

        class Screen(RichProgress):
            def get_renderables(self) -> Any:
                owner.update()
                return super().get_renderables()

        self.screen = Screen(
            TextColumn("{task.fields[line]}", markup=False),
            BarColumn(),
            console=console,
            refresh_per_second=4,
            transient=True,
        )

    def begin(self, step: StepProgress) -> None:
        task = self.screen.add_task(step.name, total=None, line=f"{step.name}: begins")
        with self._lock:
            self._tasks[step] = task

    def update(self) -> None:
        # Called by the thread that draws, which holds the screen's lock: so `end` lets go of ours before it removes.
        with self._lock:
            for step, task in self._tasks.items():
                now = step.snapshot()
                self.screen.update(task, total=now.total, completed=now.done, line=now.line())

    def end(self, step: StepProgress) -> None:
        with self._lock:
            task = self._tasks.pop(step)
        self.screen.remove_task(task)


@contextlib.contextmanager
def _live_bars(console: Console) -> Iterator[_Bars]:
    bars = _Bars(console)
    with bars.screen:
        yield bars
