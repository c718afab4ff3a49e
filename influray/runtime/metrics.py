"""The numbers of a shard pool as Ray metrics, for the dashboard's Prometheus: what driver.log says, by the second.

They go to the metrics agent of the driver's node and are lost where there is none; RUN/logs/metrics.jsonl has them all.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ray.util.metrics import Counter, Gauge

from influray.runtime.tasks import PoolEvent, ShardTask
from influray.store.artifact import Receipt


class PoolMetrics:
    """Counts committed shards and events of one run of the pool over `total` shards, and hands both on."""

    def __init__(
        self, total: int, receive: Callable[[ShardTask, Receipt], None], hear: Callable[[PoolEvent], None]
    ) -> None:
        self._receive, self._hear = receive, hear
        split, worker = ("split",), ("split", "worker")
        self._shards = Counter("influray_shards", "Shards committed.", worker)
        self._rows = Counter("influray_rows", "Rows of committed shards.", worker)
        self._tokens = Counter("influray_tokens", "Tokens of committed shards.", worker)
        self._events = Counter("influray_events", "Retries, lost workers and the like.", ("kind",))
        self._left = Gauge("influray_shards_left", "Shards that are not committed yet.", split)
        self._rate = Gauge("influray_worker_rows_per_second", "Rows of a worker's last shard by its seconds.", worker)
        self._seconds_left = Gauge("influray_seconds_left", "At the mean pace so far.", split)
        self._total, self._done, self._began = total, 0, time.monotonic()

    def on_receipt(self, task: ShardTask, receipt: Receipt) -> None:
        """Take in a committed shard."""
        details = receipt.details
        tags = {"split": task.split, "worker": str(details.get("worker", ""))}
        rows, tokens = int(details.get("rows", receipt.rows)), int(details.get("tokens", 0))
        self._shards.inc(1, tags)
        for counter, value in ((self._rows, rows), (self._tokens, tokens)):
            if value:  # a counter takes no 0
                counter.inc(value, tags)
        if details.get("seconds"):
            self._rate.set(rows / details["seconds"], tags)
        self._done += 1
        left = self._total - self._done
        self._left.set(left, {"split": task.split})
        self._seconds_left.set(left * (time.monotonic() - self._began) / self._done, {"split": task.split})
        self._receive(task, receipt)

    def on_event(self, event: PoolEvent) -> None:
        """Count an event of the pool."""
        self._events.inc(1, {"kind": event.kind})
        self._hear(event)
