"""What files hold before a model is chosen: rows, forms, lengths, and rows that cannot be read, with the reasons."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from influray.data.files import DataFile
from influray.data.forms import form_of
from influray.data.readers import read_rows
from influray.data.records import BadRow
from influray.data.turns import parse_json

READ = 20_000  # rows of a file that are looked at
SHOWN = 3  # bad rows that are kept
SAMPLED = 50  # rows of a file whose text is kept
MAX_LINE_BYTES, MAX_FILE_BYTES = 16 * 2**20, 2**36  # the defaults of the config


@dataclass
class Survey:
    """What the first `READ` rows of some files hold. `lengths` are characters of each usable row."""

    files: int = 0
    rows: int = 0
    more: bool = False  # some file goes on
    forms: Counter[str] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    lengths: list[int] = field(default_factory=list)
    sample: list[str] = field(default_factory=list)  # texts of the first rows of each file
    turns: int = 0  # the most of a row
    bad: int = 0
    shown: list[str] = field(default_factory=list)  # place and reason of the first bad rows
    repeated: int = 0  # ids that came before in the same file
    shared: int = 0  # ids that came before in another file

    @property
    def usable(self) -> int:
        return len(self.lengths)

    def quantile(self, share: float) -> int:
        """Return the length that a share of the usable rows does not exceed, 0 where there is none."""
        ordered = sorted(self.lengths)
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0


def survey(files: Iterable[DataFile]) -> Survey:
    """Return what the files hold. Raises DataError where one cannot be opened."""
    found, before = Survey(), set[str]()
    for file in files:
        found.files += 1
        before |= _add(found, file, before)
    return found


def _add(found: Survey, file: DataFile, before: set[str]) -> set[str]:
    """Add a file to what was found; return its ids."""
    ids = set[str]()
    rows = read_rows(file, MAX_LINE_BYTES, MAX_FILE_BYTES)
    most = len(found.sample) + SAMPLED
    for number, raw in islice(rows, READ):
        found.rows += 1
        try:
            if isinstance(raw, BadRow):
                raise raw
            record = file.reading.parse(raw, file.stem)
            tree = parse_json(raw.decode())
            assert isinstance(tree, dict)
            columns = file.reading.columns
            found.forms[form_of(columns.renamed(tree) if columns else tree)] += 1
        except BadRow as bad:
            found.bad += 1
            if len(found.shown) < SHOWN:
                found.shown.append(f"{file.name}:{number}: {bad.reason}")
            continue
        found.sources[record.source] += 1
        found.lengths.append(sum(len(turn.text) for turn in record.turns))
        if len(found.sample) < most:
            found.sample.append("\n".join(turn.text for turn in record.turns))
        found.turns = max(found.turns, len(record.turns))
        if record.id is not None:
            found.repeated += record.id in ids
            found.shared += record.id in before
            ids.add(record.id)
    found.more |= next(rows, None) is not None
    return ids


def words(found: Survey) -> Sequence[str]:
    """Return what was found as lines for people."""
    some = " at least" if found.more else ""
    lines = [f"{found.rows:,} rows{some} in {found.files} file{'s' * (found.files > 1)}, {found.usable:,} usable"]
    lines += [f"form {form}: {count:,}" for form, count in found.forms.most_common()]
    if found.usable:
        half, most = found.quantile(0.5), found.quantile(0.99)
        lines.append(f"half have at most {half:,} characters, 99 % at most {most:,}; up to {found.turns} turns")
    if found.bad:
        lines.append(f"{found.bad:,} cannot be read ({found.bad / found.rows:.1%}), among them:")
        lines += [f"  {line}" for line in found.shown]
    if found.repeated:
        lines.append(f"{found.repeated:,} repeat an id of their file and will not be used")
    return lines
