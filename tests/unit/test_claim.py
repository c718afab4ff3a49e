"""influray writes only where it has made the folder, or found it empty: what is somebody's stays as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from influray.protocols import ConfigError
from influray.store.claim import require_apart
from influray.store.run_directory import RunDirectory
from tests.object_store import Store

LEASE = '{"pid": 1, "host": "h", "since": "2026-01-01T00:00:00+00:00"}'
THEIRS = {  # what somebody may have in a folder
    "keep in a selection": {"selection/bids/keep.txt": "x"},
    "a report": {"report/index.html": "x"},
    "a pool": {"data/pool/a.jsonl": "{}"},
    "a pool of arrow": {"data/pool/part-0.arrow": "x"},
    "a manifest of theirs": {"config.yaml": "x", "data/pool/manifest.json": '{"parts": "x"}'},
    "a config": {"config.yaml": "model: {}"},
    "logs": {"logs/app.log": "x"},
    "their logs beside a lease": {"lease.json": LEASE, "logs/app.log": "x"},
    "a hidden file": {".bashrc": "x"},
    "a lease of another kind": {"lease.json": '{"tenant": 7}'},
    "an empty lease and a config": {"lease.json": "", "config.yaml": "x"},
    "a run.json of another tool": {"run.json": '{"command": "make"}'},
    "a list as run.json": {"run.json": "[]"},
    "an empty folder": {"sub/": ""},
    "a lease and data": {"lease.json": LEASE, "pool.jsonl": "x"},
}
OURS = {  # what a run leaves, killed whenever
    "nothing": {},
    "a lease": {"lease.json": LEASE},
    "a lease just opened": {"lease.json": ""},
    "a torn run.json": {"lease.json": LEASE, ".run.json.0123.tmp": "{"},
    "a run": {"run.json": '{"schema": 3, "steps": {}}', "selection/bids/keep.txt": "x"},
    "logs": {"lease.json": LEASE, "config.yaml": "x", "logs/driver.log": "x", "logs/worker-h-1.log": "x"},
    "a run whose run.json was lost": {"config.yaml": "x", "attribution/manifest.json": '{"schema": 3, "parts": []}'},
}


def lay(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("files", THEIRS.values(), ids=THEIRS)
def test_what_is_somebodys_is_refused_and_stays(tmp_path, files):
    lay(tmp_path / "place", files)
    before = content(tmp_path / "place")
    run = RunDirectory(tmp_path / "place")
    for attempt in (run.claim, run.require_ours, lambda: run.hold().__enter__()):
        with pytest.raises(ConfigError, match=r"^run_dir: "):
            attempt()
        assert content(tmp_path / "place") == before


@pytest.mark.parametrize("files", OURS.values(), ids=OURS)
def test_what_a_run_left_goes_on(tmp_path, files):
    lay(tmp_path / "place", files)
    run = RunDirectory(tmp_path / "place")
    with run.hold():
        run.begin()
    assert "steps" in json.loads((tmp_path / "place" / "run.json").read_text())
    run.require_ours()


@pytest.mark.parametrize(
    ("kind", "said"), [("file", "is a file"), ("below", "is a file"), ("dangling", "link to noth")]
)
def test_what_is_no_folder_is_refused(tmp_path, kind, said):
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    path = tmp_path / "file" / "below" if kind == "below" else tmp_path / kind
    run = RunDirectory(tmp_path)
    run.path = path  # a link that leads nowhere is resolved by the constructor
    with pytest.raises(ConfigError, match=said), run.hold():
        pass


def test_root_and_home_are_refused_also_where_they_are_empty(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for place in ("/", tmp_path):
        with pytest.raises(ConfigError, match="name a folder in it"):
            RunDirectory(place).require_ours()


def test_a_link_to_a_run_is_the_run_and_a_part_that_links_out_is_refused(tmp_path):
    RunDirectory(tmp_path / "run").claim()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    RunDirectory(tmp_path / "link").claim()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "keep.txt").write_text("x")
    for place in ("selection", "features/pool", "tune/bids/seed-0", "data/pool"):
        path = tmp_path / "run" / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(tmp_path / "precious")
        with pytest.raises(ConfigError, match="is a link to .*precious"):
            RunDirectory(tmp_path / "run").require_ours()
        path.unlink()
    RunDirectory(tmp_path / "run").require_ours()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_the_right_to_write_is_refused(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written"):
        RunDirectory(tmp_path / "run").require_ours()


def test_a_run_inside_its_data_and_data_inside_a_part_of_it_are_refused(tmp_path):
    lay(tmp_path, {"pool/a.jsonl": "{}", "run/selection/bids/selected.jsonl": "{}", "run/world/pool.jsonl": "{}"})
    for run in ("pool", "pool/run", "pool/deep/er"):
        with pytest.raises(ConfigError, match=r"run_dir: .* lies in data\.pool\.0"):
            require_apart(tmp_path / run, [("data.pool.0", tmp_path / "pool")])
    with pytest.raises(ConfigError, match=r"data\.pool\.0: .* lies in a part of the run directory"):
        require_apart(tmp_path / "run", [("data.pool.0", tmp_path / "run" / "selection" / "bids" / "selected.jsonl")])
    require_apart(tmp_path / "run", [("data.pool.0", tmp_path / "run" / "world" / "pool.jsonl")])
    require_apart(tmp_path / "run", [("model.base", tmp_path)], searched=False)


def test_a_prefix_with_objects_of_others_is_refused(store: Store, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store.write("theirs/notes.txt", b"x")
    with (
        pytest.raises(ConfigError, match=r"holds 'notes.txt' and no run\.json"),
        RunDirectory(store.uri("theirs")).hold(),
    ):
        pass
    assert store.names("theirs") == {"notes.txt"}
    run = RunDirectory(store.uri("ours"))
    with run.hold():
        run.begin()
    RunDirectory(store.uri("ours")).require_ours()
    assert store.names("ours") == {"run.json"}
