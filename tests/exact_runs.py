"""The folder of a scored run over a part of a pool, made with the store's own functions: no model, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from influray.config import parse_config
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.store.artifact import ShardStore
from influray.store.attribution import attribution_table, commit_attribution
from influray.store.run_directory import RunDirectory
from tests.tiny import byte_tokenizer, chat, write_jsonl

Targets = Sequence[tuple[str, str]]  # (id, task)


def write_catalogues(folder: Path, ids: Sequence[str], targets: Targets, text: str = "Say") -> RunDirectory:
    """Write the catalogues of a pool of these ids, in this order, and of these targets."""
    run = RunDirectory(folder)
    write_jsonl(folder / "raw" / "pool.jsonl", [chat(one, "s", f"{text} {one}.", f"{one}.") for one in ids])
    for i, (one, _) in enumerate(targets):
        write_jsonl(folder / "raw" / f"{i}.jsonl", [chat(one, "t", f"Ask {one}.", f"{one}!")])
    named = {
        task: {"files": [f"raw/{i}.jsonl" for i, (_, of) in enumerate(targets) if of == task]} for _, task in targets
    }
    tree = {
        "model": {"base": "m"},
        "data": {"root": str(folder), "pool": "raw/pool.jsonl", "targets": named},
        "selectors": [{"name": "s", "method": "bids", "budget": 1}],
    }
    data = parse_config(tree).data
    encoder = ChatEncoder(byte_tokenizer(), "auto", data.max_tokens)
    pool = [("", one) for one in resolve_files(["raw/pool.jsonl"], data.root, "data.pool")]
    of = [(task, resolve_files([f"raw/{i}.jsonl"], data.root, "data")) for i, (_, task) in enumerate(targets)]
    found = [(task, one) for task, files in of for one in files]
    build_catalogue(run.data("pool"), "pool", pool, encoder, "tiny", data, quarantine=run.quarantine_path)
    build_catalogue(run.data("target"), "target", found, encoder, "tiny", data, quarantine=run.quarantine_path)
    return run


def write_exact(
    folder: Path, ids: Sequence[str], targets: Targets, score_ET: np.ndarray, text: str = "Say"
) -> RunDirectory:
    """Write a scored run of these rows and targets, whose matrix is `score_ET`."""
    run = write_catalogues(folder, ids, targets, text)
    store = ShardStore(run.attribution)
    store.commit("a", attribution_table(np.arange(len(ids)), score_ET), {})
    names, tasks = zip(*targets, strict=True)
    commit_attribution(store, ["a"], {"fingerprint": "f"}, np.arange(len(targets)), names, tasks)
    return run


def pool_of(folder: Path, split: str = "pool") -> Catalogue:
    return Catalogue(RunDirectory(folder).data(split))
