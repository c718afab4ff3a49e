"""A catalogue of some rows of another one: the same records, tokens and places, numbered anew in the same order.

Nothing is read or encoded again. Of all rows it has the same parts, byte for byte.

Shape suffixes: n rows that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influray.data.catalogue import Catalogue
from influray.data.numbering import Part, Piece, part_table
from influray.store.artifact import ShardStore, fingerprint, hash_bytes, whole_manifest
from influray.store.checks import broken


def build_subset(folder: Path, whole: Catalogue, row_n: np.ndarray, facts: Mapping[str, Any]) -> Catalogue:
    """Bring the catalogue of the rows `row_n` of `whole`, ascending, up to date in `folder`, and return it.

    `facts` go into its manifest. A part whose rows are as they were is not made again.
    """
    store = ShardStore(folder)
    made_from = fingerprint({"whole": whole.digest, "rows": hash_bytes(row_n.astype(np.int64).tobytes())})
    found = whole_manifest(folder)
    known = {"subset_of": made_from, **facts}
    current = found is not None and all(found.get(name) == value for name, value in known.items())
    if current and not broken(store.folder, found or {}):
        return Catalogue(folder)
    rows_of = {part["key"]: part["rows"] for part in whole.manifest["parts"]}
    keys, described, start = [], [], 0
    for file in whole.manifest["files"]:
        its: list[str] = []
        rows = 0
        for key in (one for one in file["parts"] if rows_of[one]):
            kept_n = row_n[np.searchsorted(row_n, start) : np.searchsorted(row_n, start + rows_of[key])]
            if len(kept_n):
                its.append(_part(store, whole, start, kept_n - start, first=int(np.searchsorted(row_n, start))))
            start, rows = start + rows_of[key], rows + len(kept_n)
        key = fingerprint({"subset_of": made_from, "file": file["key"]})
        described.append({**file, "rows": rows, "read": rows, "left_out": 0, "key": key, "parts": its})
        keys += its
    receipts = [receipt for key in keys if (receipt := store.receipt(key)) is not None]
    digest = fingerprint([receipt.sha256 for receipt in receipts])
    own = {name: whole.manifest[name] for name in ("split", "encoder")}
    store.freeze(keys, {**own, **known, "digest": digest, "files": described})
    return Catalogue(folder)


def _part(store: ShardStore, whole: Catalogue, start: int, kept_n: np.ndarray, first: int) -> str:
    """Commit the rows at `kept_n` of the part that begins with row `start`, numbered from `first`; return their key."""
    batch, sha256 = whole.part_at(start)
    key = fingerprint({"of": sha256, "rows": hash_bytes(kept_n.astype(np.int64).tobytes()), "first": first})
    if store.valid_receipt(key) is None:
        part = Part(first, 0, pieces=[Piece(pa.Table.from_batches([batch]), kept_n)])
        store.commit(key, part_table(store.folder, part), {"rows": len(kept_n)})
    return key
