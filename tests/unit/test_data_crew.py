"""A catalogue is the same whoever makes it: the driver, a crew of any size in any order, or several after one another."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influray.config import DataConfig
from influray.data import drafts, jobs, numbering, parts
from influray.data.catalogue import build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.jobs import DraftJob, Faults, PartJob, Unfit, carry_out
from influray.data.readers import DataFile, read_rows, resolve_files
from influray.data.spans import find_spans
from influray.protocols import DamagedArtifact, DataError
from influray.store.artifact import ShardStore
from tests.reference.catalogue_loop import catalogue_loop, part_digest
from tests.tiny import byte_tokenizer, chat, pool_rows, write_jsonl

TOKENIZER = byte_tokenizer()
LIMITS = {"max_line_bytes": 400, "max_file_bytes": 2**20}


class Crew:
    """The jobs in an order of their own, in this process; `stop_after` is when somebody presses Ctrl-C."""

    def __init__(self, folder: Path, config: DataConfig, workers: int, seed: int = 0, stop_after: int = 10**9) -> None:
        self.folder = folder
        self.config = config
        self.workers = workers
        self.done: list[DraftJob | PartJob] = []
        self._order = random.Random(seed)
        self._stop_after = stop_after
        self._encoder = encoder()

    def __call__(self, jobs):
        faults = Faults(jobs)
        receipts = {}
        for job in self._order.sample(jobs, len(jobs)):
            if len(self.done) == self._stop_after:
                raise KeyboardInterrupt
            self.done.append(job)
            receipts[job.key] = carry_out(self.folder, job, self._encoder, self.config)
            faults.note(job, receipts[job.key])
        return [receipts[job.key] for job in jobs]


def encoder(template: str | None = None) -> ChatEncoder:
    return ChatEncoder(byte_tokenizer(template) if template else TOKENIZER, "auto", 48)


def config_of(root: Path) -> DataConfig:
    return DataConfig(root=str(root), pool=("pool",), targets={"t": "t.jsonl"}, max_bad_fraction=1, **LIMITS)


def build(root: Path, run: Path, crew: Crew | None = None, chat_encoder: ChatEncoder | None = None):
    config = config_of(root)
    files = [("", file) for file in resolve_files(config.pool, root, "data.pool")]
    made = build_catalogue(
        run / "pool",
        "pool",
        files,
        chat_encoder or encoder(),
        "key",
        config,
        quarantine=run / "quarantine.jsonl",
        find_crew=None if crew is None else lambda seconds: crew,
    )
    return made


def crew_for(root: Path, run: Path, workers: int = 3, **options) -> Crew:
    return Crew(run / "pool", config_of(root), workers, **options)


def facts(run: Path):
    """What a catalogue is: the content of each part, what its receipt says, and the quarantine."""
    store = ShardStore(run / "pool")
    manifest = json.loads((run / "pool" / "manifest.json").read_bytes())
    receipts = [store.receipt(part["key"]) for part in manifest["parts"]]
    assert not (run / "pool" / jobs.DRAFTS).exists(), "drafts were left"
    return (
        manifest["digest"],
        manifest["files"],
        [(receipt.key, receipt.sha256, receipt.rows, dict(receipt.details)) for receipt in receipts if receipt],
        (run / "quarantine.jsonl").read_bytes(),
    )


@pytest.fixture
def small(monkeypatch):
    for module in (jobs, parts):
        monkeypatch.setattr(module, "DRAFT_BYTES", 500)
    monkeypatch.setattr(numbering, "PART_ROWS", 7)
    monkeypatch.setattr(numbering, "PART_BYTES", 900)
    monkeypatch.setattr(drafts, "BLOCK_ROWS", 3)


CONTENTS = st.sampled_from(["a", "b", "é" * 9, "long " * 30, "x" * 500])
IDS = st.sampled_from([None, None, "1", "2", "3", "four", "fünf", "free"])
ROWS = st.one_of(
    st.tuples(IDS, CONTENTS, st.integers(0, 40)),
    st.sampled_from([b"", b"  ", b"not json", b'{"messages": []}', b'{"id": "e", "prompt": "q", "completion": ""}']),
)
FILES = st.lists(
    st.tuples(st.sampled_from(["jsonl", "jsonl.gz", "jsonl.zst"]), st.lists(ROWS, max_size=40), st.booleans()),
    min_size=1,
    max_size=3,
)


def line_of(row) -> bytes:
    if isinstance(row, bytes):
        return row
    identity, content, number = row
    given_id = f"{identity}-{number}" if identity == "free" else identity
    return json.dumps({"id": given_id, "prompt": content, "completion": str(number % 4)}, ensure_ascii=False).encode()


def write_files(root: Path, files) -> None:
    (root / "pool").mkdir(parents=True)
    for number, (suffix, rows, ends) in enumerate(files):
        text = b"\n".join(map(line_of, rows)) + (b"\n" if ends else b"")
        pack = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.compress}[suffix]
        (root / "pool" / f"{number}.{suffix}").write_bytes(pack(text))
    write_jsonl(root / "pool" / "9.jsonl", [chat("last", "s", "q", "a")])  # never a pool without a row


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(files=FILES, workers=st.integers(1, 5), seed=st.integers(0, 9), stops=st.lists(st.integers(0, 30), max_size=2))
def test_anyones_catalogue_is_that_of_the_loop(small, tmp_path_factory, files, workers, seed, stops):
    root = tmp_path_factory.mktemp("world")
    write_files(root, files)
    build(root, root / "alone")
    build(root, root / "crew", crew_for(root, root / "crew", workers, seed=seed))
    assert facts(root / "crew") == facts(root / "alone")
    for number, stop in enumerate(stops):
        try:
            build(root, root / "stopped", crew_for(root, root / "stopped", workers + number, seed=seed, stop_after=stop))
        except KeyboardInterrupt:
            continue
    if seed % 2:  # whoever goes on
        build(root, root / "stopped")
    else:
        build(root, root / "stopped", crew_for(root, root / "stopped", 2, seed=seed))
    assert facts(root / "stopped") == facts(root / "alone")
    found = facts(root / "alone")[2]
    data = [("", file, None) for file in resolve_files(["pool"], root, "data.pool")]
    expected = [part for made in catalogue_loop(data, encoder(), 7, 900, **LIMITS) for part in made]
    assert [details for _, _, _, details in found] == [
        {name: part[name] for name in ("bad", "last", "next_line", "read")} for part in expected
    ]
    assert [rows for _, _, rows, _ in found] == [len(part["rows"]) for part in expected]
    assert [sha256 for _, sha256, rows, _ in found if rows] == [
        part_digest(root, part["rows"]) for part in expected if part["rows"]
    ]
