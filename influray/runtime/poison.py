"""Which row of a shard kills every process that computes it: halves are tried alone until one row is left.

A death may also be a node's that was taken away, so a row is convicted only if it kills two processes by itself while
other rows of its shard live. Imports no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass

MAX_CONVICTED = 8  # rows of one shard; beyond it the rows are not what is wrong
CONVICTING_DEATHS = 2  # of processes that computed the one row alone

ROW_REASON = "kills the process that computes it, also when it is computed alone"


@dataclass(eq=False)
class Hunt:
    """The search in one shard, of catalogue rows [start, stop).

    While `done` is False, `probe` is the range to compute next without committing anything, and `note` takes in
    whether its process died. Afterwards `row` is the convicted one, None where there is none, and `finding` says why.
    At most log2(rows) + 5 ranges are probed.
    """

    start: int
    stop: int
    without: tuple[int, ...] = ()  # rows convicted before

    def __post_init__(self) -> None:
        self._suspects = [row for row in range(self.start, self.stop) if row not in self.without]
        self._others = self._suspects
        self._lived = False  # did any process live
        self._deaths = 0  # of the last suspect alone
        self._controls: list[int] = []  # rows that are tried alone to see whether any lives
        self.done = not self._suspects
        self.row: int | None = None
        self.finding = "no row is left" if self.done else ""

    @property
    def probe(self) -> tuple[int, int]:
        """The range [start, stop) to compute; rows of `without` in it stay left out."""
        if self._controls:
            return self._controls[0], self._controls[0] + 1
        half = self._suspects[: (len(self._suspects) + 1) // 2]
        return half[0], half[-1] + 1

    def note(self, died: bool) -> None:
        """Take in what became of the process that computed `probe`."""
        self._lived |= not died
        if self._controls:
            self._controls = self._controls[1:] if died else []
            if not self._controls:
                self._conclude(died)
        elif len(self._suspects) > 1:
            middle = (len(self._suspects) + 1) // 2
            self._suspects = self._suspects[:middle] if died else self._suspects[middle:]
        elif not died:
            self.done, self.finding = True, "each row that was tried alone lives, so it is not a row"
        else:
            self._deaths += 1
            if self._deaths == CONVICTING_DEATHS:
                others = self._others[1:]
                if self._lived or not others:
                    self._conclude(False)
                else:  # every half died down to the first row: does any row live? Two, since one may be guilty as well
                    self._controls = list(dict.fromkeys((others[-1], others[len(others) // 2])))

    def _conclude(self, died: bool) -> None:
        self.done = True
        if died:
            self.finding = "processes die whatever row they compute, so it is not a row"
        else:
            self.row = self._suspects[0]
            self.finding = f"row {self.row} {ROW_REASON}"
