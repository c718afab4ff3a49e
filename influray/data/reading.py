"""How the rows of a file are read: what its entry of the config says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from influray.config_data import ColumnsConfig
from influray.data.columns import Columns, columns_of
from influray.data.records import Record, parse_record
from influray.data.weights import Weights, read_weights


@dataclass(frozen=True, slots=True)
class Reading:
    """What turns the bytes of a row into a record, and what else an entry says of its rows.

    `source` is that of all rows, "" where each has its own; `scope` goes before their ids; `entry` names the entry
    where it has a `limit` of usable rows; `weights` is the address of its file of ids and weights, `weights_digest`
    the hash of it.
    """

    columns: Columns | None = None
    source: str = ""
    scope: str = ""
    entry: str = ""
    limit: int | None = None
    weights: str = ""
    weights_digest: str = ""

    def parse(self, raw: bytes, default_source: str = "") -> Record:
        """Return the record of a row. Raises BadRow as `parse_record`."""
        record = parse_record(raw, default_source, self.columns)
        return replace(record, source=self.source) if self.source else record

    def scoped(self, identity: str) -> str:
        """Return the id of a row as the catalogue has it."""
        return f"{self.scope}:{identity}" if self.scope else identity

    def weights_by_id(self) -> Weights | None:
        """Return id -> weight, None where the entry names no file of them. Raises DataError as `read_weights`."""
        return read_weights(self.weights, self.weights_digest) if self.weights else None

    def facts(self) -> dict[str, Any]:
        """Return what the rows depend on, as plain values; `reading_of` makes a reading of it that parses alike."""
        found = {
            "columns": None if self.columns is None else self.columns.config.model_dump(mode="json"),
            "source": self.source,
            "scope": self.scope,
            "entry": self.entry,
            "limit": self.limit,
            "weights": self.weights_digest,
        }
        return {name: value for name, value in found.items() if value}


PLAIN = Reading()


def reading_of(facts: Mapping[str, Any]) -> Reading:
    """Return the reading by which the rows of a committed file are parsed again."""
    columns = ColumnsConfig.model_validate(facts.get("columns", {}))
    return Reading(columns_of(columns), facts.get("source", ""), facts.get("scope", ""))
