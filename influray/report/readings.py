"""The parts of a run directory that a report reads, those that are there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from influray.config import Config, load_config
from influray.data.catalogue import Catalogue
from influray.report.selections import Pool
from influray.store.artifact import read_manifest
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory


@dataclass
class Readings:
    """What of a run can be read: None for a part that is not there."""

    run: RunDirectory
    config: Config
    pool: Pool | None
    attribution: Attribution | None
    missing: dict[str, str] = field(default_factory=dict)


def open_run(run_dir: str | Path) -> Readings:
    """Return the parts of a run that are there. Raises as `collect`."""
    run = RunDirectory(run_dir)
    readings = Readings(run, load_config(run.check_config()), None, None)
    run.require_made("data", "score", "select", *(["evaluate"] if readings.config.tune is not None else []))
    if read_manifest(run.data("pool")) is None:
        readings.missing["pool"] = "influray select"
    else:
        readings.pool = Pool(Catalogue(run.data("pool")))
    if read_manifest(run.attribution) is None:
        readings.missing["attribution"] = "influray score"
    else:
        readings.attribution = Attribution(run.attribution)
    return readings
