"""A catalogue is the same whoever makes it: the driver, a crew of any size in any order, or several after one another."""

from __future__ import annotations

import gzip
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from influray.config import DataConfig
from influray.data import drafts, jobs, numbering, parts, streams
from influray.data.catalogue import build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import DataFile, resolve_files
from influray.data.jobs import DRAFTS, DraftJob, Faults, PartJob, Unfit, run_job
from influray.data.lines import find_spans
from influray.data.readers import read_rows
from influray.protocols import DamagedArtifact, DataError
from influray.store.artifact import ShardStore
from tests.reference.catalogue_loop import catalogue_loop, part_digest
from tests.tiny import byte_tokenizer, chat, pool_rows, write_jsonl

CORRUPT = Path(os.environ.get("INFLURAY_DATA", "."), "corrupt")
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
            receipts[job.key] = run_job(self.folder, job, self._encoder, self.config)
            faults.note(job, receipts[job.key])
        return [receipts[job.key] for job in jobs]


def encoder(template: str | None = None) -> ChatEncoder:
    return ChatEncoder(byte_tokenizer(template) if template else TOKENIZER, "auto", 48)


def config_of(root: Path) -> DataConfig:
    return DataConfig(root=str(root), pool=("pool",), targets={"t": "t.jsonl"}, max_bad_fraction=1, **LIMITS)


def build(root: Path, run: Path, crew: Crew | None = None, chat_encoder: ChatEncoder | None = None):
    config = config_of(root)
    files = [("", file) for file in resolve_files(config.pool, root, "data.pool")]
    return build_catalogue(
        run / "pool",
        "pool",
        files,
        chat_encoder or encoder(),
        "key",
        config,
        quarantine=run / "quarantine.jsonl",
        find_crew=None if crew is None else lambda seconds: crew,
    )


def crew_for(root: Path, run: Path, workers: int = 3, **options) -> Crew:
    return Crew(run / "pool", config_of(root), workers, **options)


def facts(run: Path):
    """What a catalogue is: the content of each part, what its receipt says, and the quarantine."""
    store = ShardStore(run / "pool")
    manifest = json.loads((run / "pool" / "manifest.json").read_bytes())
    receipts = [store.receipt(part["key"]) for part in manifest["parts"]]
    assert not (run / "pool" / DRAFTS).exists(), "drafts were left"
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
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
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
            build(
                root, root / "stopped", crew_for(root, root / "stopped", workers + number, seed=seed, stop_after=stop)
            )
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


def write_pool(root: Path, rows: int = 60) -> None:
    found = pool_rows(rows)
    for row in found[::4]:
        del row["id"]
    found[31]["id"] = found[1]["id"]
    write_jsonl(root / "pool" / "a.jsonl", found[:45])
    write_jsonl(root / "pool" / "b.jsonl", found[45:] + found[::8])


def test_columnar_files_are_drafted_too(small, tmp_path):
    table = pa.Table.from_pylist(pool_rows(40), schema=pa.Table.from_pylist(pool_rows(1)).schema)
    (tmp_path / "pool").mkdir()
    pq.write_table(table, tmp_path / "pool" / "a.parquet")
    with pa.OSFile(str(tmp_path / "pool" / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    build(tmp_path, tmp_path / "alone")
    crew = crew_for(tmp_path, tmp_path / "crew", 6)
    build(tmp_path, tmp_path / "crew", crew)
    assert facts(tmp_path / "crew") == facts(tmp_path / "alone")
    drafting = [job for job in crew.done if isinstance(job, DraftJob)]
    assert [len({job.turn for job in drafting if job.order == order}) for order in (0, 1)] == [3, 3]


@pytest.mark.parametrize("limit", [1, 5, 7, 8, 29, 100])
def test_a_limit_ends_the_reading_as_in_the_loop(small, tmp_path, limit):
    rows = pool_rows(40)
    rows[3]["id"] = rows[4]["id"] = rows[2]["id"]
    rows[6]["messages"][1]["content"] = ""
    for name, part in (("a", rows[:25]), ("b", rows[25:])):
        write_jsonl(tmp_path / f"{name}.jsonl", part)
    target = {"files": ["a.jsonl", "b.jsonl"], "limit": limit}
    config = DataConfig(root=str(tmp_path), pool=("a.jsonl",), targets={"t": target}, max_bad_fraction=1, **LIMITS)
    files = [("t", file) for file in resolve_files(["a.jsonl", "b.jsonl"], tmp_path, "f")]
    run = tmp_path / "run"
    crew = Crew(run / "pool", config, 3)
    quarantine = run / "quarantine.jsonl"
    build_catalogue(
        run / "pool", "target", files, encoder(), "k", config, quarantine=quarantine, find_crew=lambda seconds: crew
    )
    assert not crew.done
    limited = [("t", file, limit) for _, file in files]
    expected = [part for made in catalogue_loop(limited, encoder(), 7, 900, **LIMITS) for part in made]
    found = facts(run)[2]
    assert [(sha256, rows, details["bad"], details["next_line"]) for _, sha256, rows, details in found] == [
        (part_digest(tmp_path, part["rows"]) if part["rows"] else "", len(part["rows"]), part["bad"], part["next_line"])
        for part in expected
    ]


def test_a_long_line_or_a_large_file_is_judged_alike(small, tmp_path, monkeypatch):
    write_pool(tmp_path)
    with open(tmp_path / "pool" / "a.jsonl", "ab") as file:
        file.write(b"{" + b"x" * 5000 + b"}\n" + b'{"id": "z", "prompt": "q", "completion": "a"}')
    build(tmp_path, tmp_path / "alone")
    build(tmp_path, tmp_path / "crew", crew_for(tmp_path, tmp_path / "crew"))
    assert facts(tmp_path / "crew") == facts(tmp_path / "alone")
    monkeypatch.setitem(LIMITS, "max_file_bytes", 4000)
    messages = []
    for crew in (None, crew_for(tmp_path, tmp_path / "crew")):
        with pytest.raises(DataError, match=r"a\.jsonl:\d+: more than data\.max_file_bytes = 4000") as caught:
            build(tmp_path, tmp_path / "crew", crew)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("suffix", ["jsonl", "jsonl.gz"])
def test_of_several_faults_the_first_is_told_whoever_finds_one_first(small, tmp_path, monkeypatch, seed, suffix):
    monkeypatch.setitem(LIMITS, "max_file_bytes", 4000)
    rows = [chat(str(i), "s", "q", "a") for i in range(60)]
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool" / f"a.{suffix}").write_bytes(text if suffix == "jsonl" else gzip.compress(text))
    write_jsonl(tmp_path / "pool" / "b.jsonl", rows)
    crew = crew_for(tmp_path, tmp_path / "run", 4, seed=seed)
    with pytest.raises(DataError, match=rf"a\.{suffix}:\d+: more than data\.max_file_bytes = 4000"):
        build(tmp_path, tmp_path / "run", crew)


@pytest.mark.parametrize("call", [0, 1], ids=["drafts", "parts"])
def test_an_unfit_crew_leaves_the_rest_to_the_driver(small, tmp_path, caplog, call):
    write_pool(tmp_path)
    build(tmp_path, tmp_path / "alone")

    class Leaving(Crew):
        calls = 0

        def __call__(self, jobs):
            self.calls += 1
            if self.calls == call + 1:
                super().__call__(jobs[:2])
                raise Unfit("node-7 does not see the data")
            return super().__call__(jobs)

    crew = Leaving(tmp_path / "crew" / "pool", config_of(tmp_path), 3)
    build(tmp_path, tmp_path / "crew", crew)
    assert crew.calls == call + 1
    assert "node-7 does not see the data; this process does" in caplog.text
    assert facts(tmp_path / "crew") == facts(tmp_path / "alone")


def test_a_file_that_is_not_to_be_seen_is_no_fault_of_the_data(small, tmp_path):
    write_pool(tmp_path)
    crew = crew_for(tmp_path, tmp_path / "run")
    build(tmp_path, tmp_path / "run", crew)
    job = next(job for job in crew.done if isinstance(job, DraftJob))
    for wrong in (replace(job, address=str(tmp_path / "nowhere")), replace(job, size=job.size + 1)):
        with pytest.raises(Unfit, match="does not see this file"):
            run_job(tmp_path / "run" / "pool", wrong, encoder(), config_of(tmp_path))


def test_a_damaged_draft_is_made_again(small, tmp_path):
    write_pool(tmp_path)
    build(tmp_path, tmp_path / "alone")

    class Flipping(Crew):
        """A crew on a disk that changes a byte of the rows of every draft."""

        def __call__(self, jobs):
            if isinstance(jobs[0], PartJob):
                for file in {piece.rows.file for job in jobs for piece in job.part.pieces}:
                    path = self.folder / DRAFTS / file
                    content = path.read_bytes()
                    path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
            return super().__call__(jobs)

    with pytest.raises(DamagedArtifact, match="makes it again"):
        build(tmp_path, tmp_path / "crew", Flipping(tmp_path / "crew" / "pool", config_of(tmp_path), 3))
    crew = crew_for(tmp_path, tmp_path / "crew")
    build(tmp_path, tmp_path / "crew", crew)
    assert facts(tmp_path / "crew") == facts(tmp_path / "alone")


def test_what_is_drafted_is_not_encoded_again(small, tmp_path):
    write_pool(tmp_path)
    (tmp_path / "pool" / "c.jsonl.gz").write_bytes(gzip.compress((tmp_path / "pool" / "a.jsonl").read_bytes()))
    stopped = crew_for(tmp_path, tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, tmp_path / "run", Crew(tmp_path / "run" / "pool", config_of(tmp_path), 3, stop_after=9))
    assert len(list((tmp_path / "run" / "pool" / "drafts").glob("part-*"))) > 9

    class Counting(ChatEncoder):
        encoded = 0

        def encode_many(self, records):
            Counting.encoded += len(records)
            return super().encode_many(records)

    stopped._encoder = Counting(TOKENIZER, "auto", 48)
    build(tmp_path, tmp_path / "run", stopped)
    rows = sum(len(list(read_rows(file, **LIMITS))) for file in resolve_files(["pool"], tmp_path, "p"))
    assert 0 < Counting.encoded < rows - 9


LINES = st.lists(st.binary(max_size=12).map(lambda line: line.replace(b"\n", b"")), max_size=60)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=LINES, ends=st.booleans(), bom=st.booleans(), size=st.integers(1, 60), chunk=st.integers(1, 30))
def test_spans_hold_every_line_once(tmp_path, monkeypatch, lines, ends, bom, size, chunk):
    monkeypatch.setattr(streams, "CHUNK", chunk)
    path = tmp_path / "a.jsonl"
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + b"\n".join(lines) + (b"\n" if ends else b""))
    file = DataFile(str(path), "a.jsonl", "jsonl")
    found = find_spans(file, size, 10**6)
    whole = list(map(repr, read_rows(file, 9, 10**6)))
    if found:
        assert [row for span in found for row in map(repr, read_rows(file, 9, 10**6, span))] == whole
        assert [span.stop for span in found[:-1]] == [span.start for span in found[1:]]
        assert [span.line + span.lines for span in found[:-1]] == [span.line for span in found[1:]]
        assert found[-1].stop == path.stat().st_size
        assert all(span.stop - span.start >= size for span in found[:-1])


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", gzip.compress(b"{}\n", mtime=0)),
        ("a.jsonl", "{}\n".encode("utf-16")),
        ("a.jsonl", b"[\n{}\n]\n"),
        ("a.jsonl", gzip.compress(b"{}\n", mtime=0)),
        ("a.jsonl", b"{}\n" * 4),
        ("a.jsonl", b""),
    ],
    ids=["gzip", "utf-16", "array", "gzip-inside", "too-large", "empty"],
)
def test_what_has_to_be_read_from_its_start_has_no_spans(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    (file,) = resolve_files([name], tmp_path, "f")
    assert find_spans(file, 4, 11) == []


@pytest.mark.parametrize("name", sorted(p.name for p in CORRUPT.glob("*.jsonl*")) or ["none"])
def test_corrupt_files_are_judged_alike_by_a_crew(real_data, tmp_path, monkeypatch, name):
    for module in (jobs, parts):
        monkeypatch.setattr(module, "DRAFT_BYTES", 3000)
    monkeypatch.setattr(drafts, "BLOCK_ROWS", 5)
    config = DataConfig(root=str(CORRUPT), pool=(name,), targets={"t": "t"}, max_bad_fraction=1)
    files = [("", file) for file in resolve_files([name], CORRUPT, "data.pool")]
    made = []
    for who in ("alone", "crew"):
        run = tmp_path / who
        crew = Crew(run / "pool", config, 3)
        find_crew = (lambda seconds: crew) if who == "crew" else None  # noqa: B023 - called before the next
        try:
            build_catalogue(
                run / "pool", "pool", files, encoder(), "k", config, quarantine=run / "q.jsonl", find_crew=find_crew
            )
            found = json.loads((run / "pool" / "manifest.json").read_bytes())
            made.append((found["digest"], found["files"], (run / "q.jsonl").read_bytes()))
        except DataError as error:
            made.append((str(error), (run / "q.jsonl").read_bytes()))
    assert made[0] == made[1]
