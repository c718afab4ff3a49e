"""What choosing costs: the worker's time of a config up to its selections, where the pool is known."""

from __future__ import annotations

from collections.abc import Mapping

from influray.config import Config
from influray.planning.arithmetic import Machine, Workload
from influray.planning.estimate import Found, costs, trained_checkpoints
from influray.registry import WARMED, featurizer_reads
from influray.steps.cheap_pass import cheap_config

CHOOSING = ("data", "warmup", "featurize", "score", "select")
NOTHING = Found(Workload(0, 0, 0, 0), 0.0, (), exact=True)


def worker_seconds(config: Config, machine: Machine, found: Mapping[str, Found]) -> float | None:
    """Return the seconds of one worker from the data to the selections, a cascade's cheap pass with them.

    `found` are the whole pool and the targets; None = the base is not on this machine, so nobody knows its shape.
    """
    seconds = _seconds(config, machine, found)
    if config.cascade is None or seconds is None:
        return seconds
    cheap = _seconds(cheap_config(config, ""), machine, found)
    return None if cheap is None else seconds + cheap


def _seconds(config: Config, machine: Machine, found: Mapping[str, Found]) -> float | None:
    from influray.model.shape import model_shape

    reads = featurizer_reads(config.features.featurizer)
    whole = found["pool"]
    pool = whole if config.cascade is None else whole.times(config.cascade.share)
    shape = None if reads == "records" else model_shape(config.model)
    checkpoints = trained_checkpoints(config, whole.work.rows) if reads in WARMED else 1
    chosen = config.model_copy(update={"tune": None})
    splits = {"pool": pool, "target": found["target"], "test": NOTHING}
    made = costs(chosen, shape, machine, splits, checkpoints, whole=whole)
    parts = [made[name].worker_seconds for name in CHOOSING if name in made]
    known = [seconds for seconds in parts if seconds is not None]
    return sum(known) + sum(made[n].driver_seconds for n in CHOOSING if n in made) if len(known) == len(parts) else None
