"""Object storage under the primitives of the store: what is written is there, what is read is what is there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pytest

from influray.data.files import resolve_files
from influray.data.readers import read_rows
from influray.protocols import ArtifactMismatch, ConfigError, DataError, StorageError
from influray.store import lease, location, mirror
from influray.store.artifact import (
    ShardStore,
    map_table,
    read_json,
    read_manifest,
    replace_folder,
    write_bytes,
    write_json,
    write_manifest,
    write_table,
)
from influray.store.run_directory import RunDirectory
from influray.store.uri import parse_uri, redacted
from tests.object_store import Store, failing, share

KEY = "a" * 64


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Be on another machine: a cache folder of its own, and nothing remembered."""

    def move(name: str = "one") -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        monkeypatch.setattr(mirror, "_mirrors", {})
        monkeypatch.setattr(mirror, "_followed", {})

    monkeypatch.setattr(location, "FIRST_PAUSE_SECONDS", 0.01)
    move()
    return move


@pytest.fixture
def folder(request) -> str:
    return f"runs/{request.node.name[:60]}".replace("[", "-").replace("]", "")


@pytest.mark.parametrize(
    ("uri", "secret"),
    [
        ("s3://AKIA:hushhush@bucket/run", "hushhush"),
        ("s3://bucket/run?access_key=AKIA&secret_key=hushhush", "hushhush"),
        ("s3://bucket/run?X-Amz-Security-Token=hushhush", "hushhush"),
        ("s3://bucket/run?endpoint_override=http://me:hushhush@host", "hushhush"),
        ("gs://me:hushhush@bucket/run", "hushhush"),
    ],
)
def test_an_address_with_credentials_is_refused_and_they_are_not_repeated(uri, secret):
    with pytest.raises(ConfigError, match="credentials") as caught:
        RunDirectory(uri)
    assert secret not in str(caught.value)
    assert secret not in redacted(uri)


@pytest.mark.parametrize(
    "uri", ["http://host/run", "s3://bucket", "s3://bucket/../run", "s3://b/run?colour=red", "s3://b/run?timeout=soon"]
)
def test_what_is_no_address_of_a_run_is_a_config_error(uri):
    with pytest.raises(ConfigError, match="run_dir: "):
        RunDirectory(uri)


def test_an_address_survives_being_written_and_read():
    for text in ("s3://bucket/a/b", "gs://bucket/a b", "s3://b/r?endpoint_override=http://127.0.0.1:9&timeout=3"):
        uri = parse_uri(text)
        assert parse_uri(str(uri)) == uri
    assert dict(parse_uri("s3://b/r?endpoint_override=https://h:9").options) == {
        "endpoint_override": "h:9",
        "scheme": "https",
    }


def test_google_storage_goes_through_the_same_code():
    from pyarrow.fs import GcsFileSystem

    system = parse_uri("gs://bucket/run?anonymous=true&endpoint_override=127.0.0.1:9&scheme=http").filesystem()
    assert isinstance(system, GcsFileSystem)


def test_a_path_that_is_no_uri_is_left_alone(tmp_path, host):
    assert mirror.local(tmp_path) == tmp_path
    assert mirror.address_of(tmp_path / "x") == str(tmp_path / "x")
    assert mirror.location_of(tmp_path) is None
    assert RunDirectory(tmp_path).address == str(tmp_path.resolve())


def test_places_travel_between_machines(store, folder, host):
    here = RunDirectory(store.uri(folder))
    run, address = here.address, mirror.address_of(here.data("pool") / "odd #name?.arrow")
    host("two")
    there = RunDirectory(run)
    assert there.path != here.path
    assert mirror.local(address) == there.data("pool") / "odd #name?.arrow"
    with pytest.raises(ConfigError, match="leads out"):
        mirror.local(f"{there.address}#../../etc")


def test_what_one_machine_writes_another_reads(store, folder, host):
    run = RunDirectory(store.uri(folder))
    write_json(run.path / "a" / "x.json", {"n": 1})
    write_table(run.path / "a" / "part-1.arrow", pa.table({"row": [1, 2, 3]}))
    assert store.names(folder) == {"a/x.json", "a/part-1.arrow"}
    host("two")
    there = RunDirectory(store.uri(folder))
    assert not there.path.exists()
    assert read_json(there.path / "a" / "x.json") == {"n": 1}
    assert map_table(there.path / "a" / "part-1.arrow")["row"].to_pylist() == [1, 2, 3]
    write_json(there.path / "a" / "x.json", {"n": 2})
    host("one")
    assert read_json(RunDirectory(store.uri(folder)).path / "a" / "x.json") == {"n": 2}


def test_a_file_of_the_mirror_that_the_storage_no_longer_has_is_gone(store, folder, host):
    run = RunDirectory(store.uri(folder))
    write_json(run.path / "x.json", 1)
    store.content.delete_file(f"bucket/{folder}/x.json")
    with pytest.raises(FileNotFoundError):
        read_json(run.path / "x.json")


@pytest.mark.parametrize("damage", ["truncate", "foreign", "delete", "receipt"])
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_a_damaged_object_is_noticed_and_made_again(store, folder, host, damage, cache):
    run = RunDirectory(store.uri(folder))
    shards = ShardStore(run.features("pool", 1))
    table = pa.table({"row": list(range(100))})
    receipt = shards.commit(KEY, table, {})
    name = f"{folder}/features/pool/checkpoint-1/{receipt.file}"
    data = store.read(name)
    if damage == "foreign":
        store.write(name, bytes(len(data) + 1))
    elif damage == "truncate":
        store.write(name, data[: len(data) // 2])
    elif damage == "delete":
        store.content.delete_file(f"bucket/{name}")
    else:
        store.write(f"{folder}/features/pool/checkpoint-1/_receipts/{KEY}.json", b'{"key": ')
    if cache == "cold":
        host("two")
    again = ShardStore(RunDirectory(store.uri(folder)).features("pool", 1))
    assert again.valid_receipt(KEY) is None
    made = again.commit(KEY, table, {})
    assert again.valid_receipt(KEY) == made
    assert (made.sha256, store.read(f"{name.rpartition('/')[0]}/{made.file}")) == (receipt.sha256, data)


def test_of_two_machines_that_finish_a_shard_one_counts_and_sweeping_leaves_its_file(store, folder, host):
    table = pa.table({"row": [1]})
    first = ShardStore(RunDirectory(store.uri(folder)).attribution).commit(KEY, table, {"worker": 1})
    host("two")
    other = ShardStore(RunDirectory(store.uri(folder)).attribution)
    assert other.commit(KEY, table, {"worker": 2}) == first
    write_table(other.folder / "part-stray.arrow", table)
    other.freeze([KEY], {})
    assert store.names(f"{folder}/attribution") == {first.file, "manifest.json", f"_receipts/{KEY}.json"}


def test_a_folder_is_replaced_whole_and_its_manifest_comes_last(store, folder, host):
    def made(content: bytes, *names: str) -> Path:
        run = RunDirectory(store.uri(folder))
        scratch = run.selection("one").with_name(".one.tmp")
        for name in names:
            write_bytes(scratch / name, content)
        write_manifest(scratch, {"content": content.decode()})
        replace_folder(scratch, run.selection("one"))
        return run.selection("one")

    made(b"old", "a.jsonl", "b/c.json")
    assert store.names(folder) == {f"selection/one/{name}" for name in ("a.jsonl", "b/c.json", "manifest.json")}
    seen: list[str] = []

    def fault(method: str, path: str) -> str:
        seen.append(f"{method} {path.partition('?')[0].rpartition('/one/')[2]}")
        return ""

    with failing(store, fault) as watched:
        run = RunDirectory(watched.uri(folder))
        scratch = run.selection("one").with_name(".one.tmp")
        write_bytes(scratch / "a.jsonl", b"new")
        write_manifest(scratch, {"content": "new"})
        assert not [line for line in seen if line.startswith("PUT")], "what is being made is this machine's own"
        replace_folder(scratch, run.selection("one"))
    changes = [line for line in seen if not line.startswith(("HEAD", "GET"))]
    assert changes[0] == "DELETE manifest.json"
    assert [line for line in changes if line.startswith("PUT") and line.endswith(("jsonl", "json"))] == [
        "PUT a.jsonl",
        "PUT manifest.json",
    ]
    host("two")
    there = RunDirectory(store.uri(folder)).selection("one")
    assert (read_manifest(there) or {})["content"] == "new"
    assert {str(p.relative_to(there)) for p in mirror.present_folder(there).rglob("*") if p.is_file()} == {
        "a.jsonl",
        "manifest.json",
    }


@pytest.mark.parametrize("size", [1000, 2**22 + 1])
@pytest.mark.parametrize("what", ["500", "cut"])
def test_failures_of_the_storage_are_borne(store, folder, host, what, size):
    """Also a write in parts, and a connection that breaks within one."""
    data, count = os.urandom(size), 4 if size < 10_000 else 1
    with failing(store, share(3, **{f"_{what}": 0.3})) as bad:
        for k in range(count):
            write_bytes(RunDirectory(bad.uri(folder, timeout="5")).path / f"{k}.bin", data)
        host("two")
        for k in range(count):
            assert mirror.present(RunDirectory(bad.uri(folder, timeout="5")).path / f"{k}.bin").read_bytes() == data
        assert bad.faults[what] >= 1
    assert store.names(folder) == {f"{k}.bin" for k in range(count)}


@pytest.mark.parametrize("size", [1000, 2**22 + 1])
def test_a_storage_that_stays_away_is_named_and_leaves_what_was_there(store, folder, host, size, monkeypatch):
    """pyarrow puts an empty object where it cannot begin an upload in parts; so this is not how it is asked."""
    path = f"{folder}/x.bin"
    store.write(path, b"committed")
    told = r"x\.bin: the storage failed 2 times while writing.*same command again"
    monkeypatch.setattr(location, "ATTEMPTS", 2)
    with (
        failing(store, lambda method, _: "500" if method in ("PUT", "POST") else "") as bad,
        pytest.raises(StorageError, match=told),
    ):
        write_bytes(RunDirectory(bad.uri(folder)).path / "x.bin", bytes(size))
    time.sleep(0.2)
    assert store.read(path) == b"committed"


def test_a_storage_that_stalls_is_asked_again(store, folder, host):
    asked: list[str] = []

    def fault(method: str, path: str) -> str:
        asked.append(method)
        return "stall" if len(asked) == 1 else ""

    with failing(store, fault, stall_seconds=3) as slow:
        write_bytes(RunDirectory(slow.uri(folder, timeout="1")).path / "x.bin", b"data")
    assert store.read(f"{folder}/x.bin") == b"data"


def test_what_is_refused_is_not_asked_again_and_says_where_credentials_come_from(store, host):
    uri = store.uri("run").replace("s3://bucket/", "s3://another-bucket/")
    with pytest.raises(ConfigError, match="NO_SUCH_BUCKET.*AWS_ACCESS_KEY_ID"):
        write_bytes(RunDirectory(uri).path / "x", b"")


def test_a_log_is_uploaded_as_it_grows_and_goes_on_on_another_machine(store, folder, host):
    log = RunDirectory(store.uri(folder)).logs / "driver.log"
    log.parent.mkdir(parents=True)
    mirror.follow(log)
    log.write_text("one\n")
    mirror.flush()
    assert store.read(f"{folder}/logs/driver.log") == b"one\n"
    host("two")
    log = RunDirectory(store.uri(folder)).logs / "driver.log"
    mirror.follow(log)
    with open(log, "a") as file:
        file.write("two\n")
    mirror.flush(log.parent)
    assert store.read(f"{folder}/logs/driver.log") == b"one\ntwo\n"


def test_one_driver_holds_a_run_on_object_storage(store, folder, host, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.5)
    uri = store.uri(folder)
    with RunDirectory(uri).hold():
        host("two")
        with pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"), RunDirectory(uri).hold():
            pass
        monkeypatch.setattr(lease.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(ConfigError, match="one driver at a time"), RunDirectory(uri).hold():
            pass
    assert store.names(folder) == set()


HOLDER = """
import sys, time
from influray.interrupts import interrupt_on_sigterm
from influray.protocols import RunStopped
from influray.store import lease
from influray.store.run_directory import RunDirectory
lease.BEAT_SECONDS = 0.2
try:
    with interrupt_on_sigterm(), RunDirectory(sys.argv[1]).hold():
        print("held", flush=True)
        while True:
            time.sleep(1)
except RunStopped as stopped:
    print(stopped, flush=True)
"""


def test_a_driver_whose_lease_was_removed_and_taken_stops(store, folder, host, tmp_path):
    """Two processes: the second one finds no lease and begins, the first notices and ends."""
    uri = store.uri(folder)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "other machine")}
    command = [sys.executable, "-c", HOLDER, uri]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        # Between two beats of the first, which would write it again.
        while json.loads(store.read(f"{folder}/lease.json"))["pid"] == first.pid:
            taker = {"pid": os.getpid(), "host": "elsewhere", "since": "now", "token": "mine"}
            store.write(f"{folder}/lease.json", json.dumps(taker).encode())
        try:
            said = first.communicate(timeout=120)[0]
        finally:
            first.kill()
    assert f"was taken over by process {os.getpid()} on elsewhere" in said
    assert "one driver at a time" in said
    assert json.loads(store.read(f"{folder}/lease.json"))["token"] == "mine", "it leaves the lease of another alone"


def test_the_lease_of_a_killed_driver_is_taken_over(store, folder, host, monkeypatch):
    monkeypatch.setattr(lease, "STALE_SECONDS", 2.0)
    holder = {"pid": 2**22 + 1, "host": "a-node-that-died", "since": "then", "token": "x"}
    store.write(f"{folder}/lease.json", json.dumps(holder).encode())
    began = time.monotonic()
    with RunDirectory(store.uri(folder)).hold():
        assert 0.9 < time.monotonic() - began < 10
    store.write(f"{folder}/lease.json", json.dumps({**holder, "host": lease.socket.gethostname()}).encode())
    monkeypatch.setattr(lease, "STALE_SECONDS", 1e6)
    with RunDirectory(store.uri(folder)).hold():  # no such process here: nothing to wait for
        pass


def test_processes_that_share_a_mirror_never_see_half_a_file(store, folder, host):
    """One writes, others fetch: whatever they read is one of the versions, whole."""
    run = RunDirectory(store.uri(folder))
    path = run.path / "x.json"
    write_json(path, ["0"] * 50)
    wrong: list[object] = []
    whole: list[bool] = []

    def read() -> None:
        there = location.Location(mirror.location_of(path).uri, run.path)  # what another process would have
        for _ in range(20):
            there.fetch(path)
            found = json.loads(path.read_bytes())
            if len(found) != 50 or len(set(found)) != 1:
                wrong.append(found)
        whole.append(True)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for k in range(1, 15):
        write_json(path, [str(k)] * 50)
    for reader in readers:
        reader.join()
    assert not wrong
    assert len(whole) == 3
    assert read_json(path) == ["14"] * 50


def test_a_torn_object_says_what_to_do(store, folder, host):
    run = RunDirectory(store.uri(folder))
    store.write(f"{folder}/part-x.arrow", b"ARROW1")
    with pytest.raises(ArtifactMismatch, match="makes it again"):
        map_table(run.path / "part-x.arrow")


def test_data_files_are_read_from_object_storage(store, folder, host):
    rows = b'{"prompt": "a", "completion": "b"}\n'
    for name in ("b.jsonl", "more/a.jsonl", "more/notes.txt", ".hidden.jsonl"):
        store.write(f"{folder}/{name}", rows)
    files = resolve_files([store.uri(folder)], ".", "data.pool")
    assert [file.name for file in files] == [f"s3://bucket/{folder}/{name}" for name in ("b.jsonl", "more/a.jsonl")]
    (one,) = resolve_files([store.uri(f"{folder}/b.jsonl")], ".", "data.pool")
    assert (one.name, one.stem) == (f"s3://bucket/{folder}/b.jsonl", "b")
    for file in (*files, one):
        assert list(read_rows(file, 100, 100)) == [(1, rows.strip())]
    with pytest.raises(DataError, match=r"data\.pool\.0: s3://bucket/.*nothing holds no file"):
        resolve_files([store.uri(f"{folder}/nothing")], ".", "data.pool")
    with pytest.raises(ConfigError, match=r"data\.pool\.0: .*credentials"):
        resolve_files(["s3://key:secret@bucket/pool"], ".", "data.pool")


ROW = b'{"prompt": "a", "completion": "b"}\n'


def test_keys_of_any_character_and_marks_of_folders_are_read(store, folder, host):
    odd = [
        "a b+c%20d.jsonl",
        "\u00e9\u6f22.jsonl",
        "h#a?b&c=d.jsonl",
        "%2F.jsonl",
        "x=1/y.jsonl",
        "a'\"*.jsonl",
        "n" * 240 + ".jsonl",
    ]
    for name in odd:
        store.write(f"{folder}/{name}", ROW)
    store.write(f"{folder}/x=1", b"")  # the mark of a folder, as tools leave it
    store.write(folder, b"")
    for uri in (store.uri(folder), store.uri(f"{folder}/")):
        files = resolve_files([uri], ".", "data.pool")
        assert sorted(file.name for file in files) == sorted(f"s3://bucket/{folder}/{name}" for name in odd)
        assert all(list(read_rows(file, 100, 100)) == [(1, ROW.strip())] for file in files)
        for file in files:  # on another machine
            assert mirror.local(mirror.address_of(file.path)) == Path(file.path)
    (one,) = resolve_files([store.uri(f"{folder}/h%23a%3Fb&c=d.jsonl")], ".", "data.pool")
    assert one.name == f"s3://bucket/{folder}/h#a?b&c=d.jsonl"


def test_what_a_disk_cannot_hold_is_named(store, folder, host):
    store.write(f"{folder}/a.jsonl", ROW)
    store.write(f"{folder}/" + "n" * 300 + ".jsonl", ROW)
    with pytest.raises(DataError, match=r"data\.pool\.0: .*n{300}\.jsonl.*copy the object to another name"):
        resolve_files([store.uri(folder)], ".", "data.pool")
    store.content.delete_file(f"bucket/{folder}/" + "n" * 300 + ".jsonl")
    store.write(f"{folder}/a.jsonl/b.jsonl", ROW)
    for uri in (store.uri(folder), store.uri(f"{folder}/a.jsonl")):
        with pytest.raises(DataError, match=r"data\.pool\.0: .*a\.jsonl is an object and a folder at once"):
            resolve_files([uri], ".", "data.pool")


def test_a_key_with_two_slashes_on_end_is_refused_by_name(store, folder, host):
    boto3 = pytest.importorskip("boto3")
    client = boto3.client("s3", endpoint_url=f"http://{store.address}", region_name="us-east-1")
    client.put_object(Bucket="bucket", Key=f"{folder}//x.jsonl", Body=ROW)
    try:
        with pytest.raises(DataError, match=r"empty name between slashes.* copy the object to another name"):
            resolve_files([store.uri(folder)], ".", "data.pool")
    finally:
        client.delete_object(Bucket="bucket", Key=f"{folder}//x.jsonl")


def test_a_folder_that_takes_the_place_of_a_file_is_fetched(store, folder, host):
    store.write(f"{folder}/a.jsonl", ROW)
    resolve_files([store.uri(folder)], ".", "data.pool")
    store.content.delete_file(f"bucket/{folder}/a.jsonl")
    store.write(f"{folder}/a.jsonl/b.jsonl", ROW)
    (file,) = resolve_files([store.uri(folder)], ".", "data.pool")
    assert list(read_rows(file, 100, 100)) == [(1, ROW.strip())]


def test_a_saved_data_set_on_object_storage_is_what_its_state_lists(store, folder, host):
    store.write(f"{folder}/state.json", b'{"_data_files": [{"filename": "data.jsonl"}]}')
    for name in ("data.jsonl", "cache-1.arrow", "more.jsonl"):
        store.write(f"{folder}/{name}", ROW)
    (file,) = resolve_files([store.uri(folder)], ".", "data.pool")
    assert file.name.endswith("/data.jsonl")


def test_names_in_a_bucket_do_not_leave_the_mirror(store: Store, folder, host, tmp_path):
    run = RunDirectory(store.uri(folder))
    write_bytes(run.path / "fine.txt", b"")
    found = location.Location(parse_uri(store.uri(folder)), run.path)
    assert not found._safe(f"bucket/{folder}/../../outside")
    assert not found._safe(f"bucket/{folder}/a/../../outside")
    assert found._safe(f"bucket/{folder}/..fine")
    assert found.paths(run.path) == [run.path / "fine.txt"]
