"""Progress: the numbers are right, people and files get them, and the host's logging is left as it was."""

from __future__ import annotations

import io
import json
import logging
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from influray import progress as progress_module
from influray.job_status import JobStatus
from influray.progress import StepProgress, clock, open_progress
from influray.runtime.tasks import PoolEvent
from influray.steps.running import memory_facts


@pytest.fixture
def now(monkeypatch) -> SimpleNamespace:
    """A clock that stands until it is moved."""
    hand = SimpleNamespace(time=100.0)
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: hand.time)
    return hand


def receipt(worker: str, rows: int, seconds: float, tokens: int = 0) -> SimpleNamespace:
    details = {"rows": rows, "tokens": tokens, "seconds": seconds, "worker": worker}
    return SimpleNamespace(rows=rows, details=details)


def test_rates_and_time_left_count_only_what_this_run_did(now):
    step = StepProgress("featurize")
    now.time += 50  # reading a model, say
    step.expect(20, "shards", done=8)
    now.time += 10
    for _ in range(4):
        step.on_receipt(None, receipt("a", rows=5, seconds=1.0, tokens=100))
    seen = step.snapshot()
    assert (seen.done, seen.total, seen.rows, seen.tokens) == (12, 20, 20, 400)
    assert seen.rows_per_second == pytest.approx(2)
    assert seen.tokens_per_second == pytest.approx(40)
    assert seen.eta_seconds == pytest.approx(20)  # 8 more at 4 in 10 s
    assert seen.seconds == pytest.approx(60)
    assert seen.line() == "featurize: 12/20 shards, 20 rows, 2.0 rows/s, 40 tokens/s, ETA 0:20"


def test_every_worker_has_a_rate_of_its_own(now):
    step = StepProgress("featurize")
    step.on_receipt(None, receipt("fast", 30, 1.0))
    step.on_receipt(None, receipt("fast", 10, 1.0))
    step.on_receipt(None, receipt("slow", 10, 5.0))
    assert step.snapshot().workers == {"fast": pytest.approx(20), "slow": pytest.approx(2)}


def test_what_is_unknown_is_not_said(now):
    step = StepProgress("warmup")
    now.time += 125
    assert step.snapshot().line() == "warmup: 2:05 so far"
    step.note("epoch 2")
    step.advance(3)
    assert step.snapshot().line() == "warmup: 3 shards, epoch 2, 2:05 so far"


def test_retries_are_counted_and_other_events_are_not(now):
    step = StepProgress("featurize")
    for kind in ("started", "retry", "lost", "shrunk", "isolated"):
        step.on_event(SimpleNamespace(kind=kind))
    assert step.snapshot().retries == 2
    assert "2 retries" in step.snapshot().line()


def test_the_selection_driver_shows_what_it_is_at(now):
    step = StepProgress("select")
    step.expect(3, "selections")
    status = SimpleNamespace(
        **{"done": ("bids",), "running": "less", "seconds": 61.0, "chosen": 0, "budget": 0, "rows_per_second": 0.0},
        **{"memory_kills": 0, "side_by_side": 0},
    )
    step.on_status(status)
    assert step.snapshot().line().startswith("select: 1/3 selections, less for 1:01, ETA")
    status.chosen, status.budget, status.rows_per_second = 1280, 5000, 21.3
    step.on_status(status)
    assert "less for 1:01, 1280/5000 rows chosen, 21 rows/s" in step.snapshot().line()
    status.memory_kills, status.side_by_side = 2, 1
    step.on_status(status)
    assert "1 at a time after 2 kills for memory" in step.snapshot().line()


def test_jobs_at_work_count_as_parts_and_only_what_is_finished_as_done(now):
    step = StepProgress("tune")
    step.expect(6, "fine-tunings", done=2)
    now.time += 10
    step.on_jobs(0, [])
    assert step.snapshot().line() == "tune: 2/6 fine-tunings, 0:10 so far"
    running = [
        JobStatus("bids/seed-0", 30, 60, "steps", 1.25, share=0.5),
        JobStatus("less/seed-1", 45, 60, "steps", 0.5, share=0.75, before=0.25),  # it was killed, and went on
    ]
    step.on_jobs(1, running)
    now.time += 20
    line = step.snapshot().line()
    assert line.startswith("tune: 3/6 fine-tunings, bids/seed-0 30/60 steps at loss 1.250, less/seed-1 45/60 steps")
    assert step.snapshot().eta_seconds == pytest.approx((6 - 3 - 1.25) * 30 / 2)  # two tunings' worth in 30 s
    step.on_jobs(4, [])
    assert step.snapshot().line() == "tune: 6/6 fine-tunings, ETA 0:00"


def test_of_many_jobs_at_work_a_few_are_named(now):
    step = StepProgress("evaluate")
    step.expect(9, "models")
    step.on_jobs(0, [JobStatus(f"m/seed-{n}", n, 10, "records", share=n / 10) for n in range(5)])
    assert "m/seed-2 2/10 records, 2 more at work" in step.snapshot().line()
    assert "seed-3" not in step.snapshot().line()


def test_a_step_of_one_job_counts_in_its_steps_from_when_it_is_heard_of(now):
    step = StepProgress("warmup")
    step.on_jobs(0, [])
    assert step.snapshot().line() == "warmup: 0:00 so far"
    now.time += 60  # Ray and the model
    step.on_jobs(0, [JobStatus("warmup", 20, 100, "steps", 2.0, share=0.2, before=0.19)])
    assert step.snapshot().line() == "warmup: 20/100 steps, loss 2.000, 1:00 so far"
    now.time += 10
    step.on_jobs(0, [JobStatus("warmup", 40, 100, "steps", 1.5, share=0.4, before=0.19)])
    assert step.snapshot().line() == "warmup: 40/100 steps, loss 1.500, ETA 0:30"
    step.on_jobs(1, [])
    assert step.snapshot().line() == "warmup: 100/100 steps, ETA 0:00"


def test_kills_for_memory_stand_in_the_numbers_and_in_run_json(tmp_path):
    step = StepProgress("featurize")
    assert memory_facts(step) == {}
    for left in (3, 2):
        step.on_event(PoolEvent("memory", "out of memory", side_by_side=left))
    assert memory_facts(step) == {"memory_kills": 2, "side_by_side": 2}
    assert "2 at a time after 2 kills for memory" in step.snapshot().line()


@pytest.mark.parametrize(("seconds", "text"), [(7, "0:07"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03")])
def test_durations_read_like_a_clock(seconds, text):
    assert clock(seconds) == text


def entries(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_end_with_the_last_numbers_of_each_step_and_are_appended_to(tmp_path):
    for attempt in range(2):
        with open_progress(tmp_path) as progress:
            with progress.step("data") as step:
                step.expect(2, "files")
                step.advance(2, rows=10)
            with progress.step("score"):
                progress.current.on_receipt(None, receipt("a", 4, 2.0))
        last = entries(tmp_path)[2 * attempt :]
        assert [(entry["step"], entry["rows"]) for entry in last] == [("data", 10), ("score", 4)]
        assert (last[0]["done"], last[0]["total"], last[0]["unit"]) == (2, 2, "files")
        assert last[1]["workers"] == {"a": 2.0}


def test_a_step_that_fails_still_leaves_its_numbers(tmp_path):
    with open_progress(tmp_path) as progress, pytest.raises(RuntimeError):
        fail(progress)
    assert [entry["done"] for entry in entries(tmp_path)] == [5]


def fail(progress) -> None:
    with progress.step("data") as step:
        step.advance(5)
        raise RuntimeError


def test_without_a_terminal_a_plain_line_comes_at_every_interval(tmp_path):
    screen = io.StringIO()
    with open_progress(tmp_path, Console(file=screen, width=200), interval=0.02) as progress, progress.step("score"):
        progress.current.expect(9, "shards [pool]")
        deadline = time.monotonic() + 10
        while screen.getvalue().count("\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
    lines = screen.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("score: 0/9 shards [pool], 0:00 so far") for line in lines)
    assert "\x1b" not in screen.getvalue()
    assert len(entries(tmp_path)) >= 3


def test_on_a_terminal_there_is_a_bar_and_log_lines_stand_above_it(tmp_path):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with open_progress(tmp_path, console) as progress, progress.step("featurize") as step:
        step.expect(4)
        step.advance(1, rows=7)
        logging.getLogger("influray.test").warning("a worker is gone")
        deadline = time.monotonic() + 10
        while "1/4 shards" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "featurize: 1/4 shards, 7 rows" in screen.getvalue()
    assert "warning: a worker is gone" in screen.getvalue()


def test_the_logging_of_the_host_program_is_as_it_was(tmp_path, capfd):
    ours = logging.getLogger("influray")
    before = (list(ours.handlers), ours.level, list(logging.getLogger().handlers), logging.getLogger().level)
    with open_progress(tmp_path):
        logging.getLogger("influray.somewhere").info("for the file")
    assert (list(ours.handlers), ours.level, list(logging.getLogger().handlers), logging.getLogger().level) == before
    assert "INFO influray.somewhere: for the file" in (tmp_path / "driver.log").read_text()
    assert capfd.readouterr() == ("", "")
