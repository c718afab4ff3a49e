"""What reading data costs, in seconds, by arithmetic; and whether workers that share it save more than their start."""

from __future__ import annotations

from dataclasses import dataclass

COMPRESSED = 4.0  # text to its gzip or zstd, about
TOKEN_BYTES = 4.0  # of text, about


@dataclass(frozen=True, slots=True)
class DataRates:
    """Seconds, measured by jobs/benchmark_runtime.py on 2 CPU cores."""

    data_row: float = 87e-6  # seconds of one core to read, render and index a row
    data_token: float = 0.5e-6  # and to tokenise it
    number_row: float = 3e-6  # driver seconds to find out whether a row's id is new, and to number it
    number_token: float = 12e-9  # and to hash its bytes in file and catalogue
    startup: float = 8.0  # seconds until a worker that loads no model computes, Ray's own start included


def data_seconds(rows: int, tokens: float, rates: DataRates) -> float:
    """Return the seconds that one core takes to make a catalogue of so many rows."""
    return rates.data_row * rows + rates.data_token * tokens


def numbering_seconds(rows: int, tokens: float, rates: DataRates) -> float:
    """Return the seconds that the driver takes for a catalogue of so many rows that workers make."""
    return rates.number_row * rows + rates.number_token * tokens


def data_workers_pay(seconds: float, workers: int, rates: DataRates) -> bool:
    """Return whether workers save more of so many seconds of work than they take to start.

    W of them save all but a W-th of it. Under 8 s, some 80,000 short rows, no number of workers does.
    """
    return seconds * (1 - 1 / workers) > rates.startup
