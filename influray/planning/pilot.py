"""pilot: on a sample of the pool, what cheaper recipes keep of the full one's choice, beside what each costs.

The full recipe and the cheaper ones choose from the sample as they would choose from the whole pool.

Shape suffixes: N rows of the sample, n chosen rows, G tasks, R records, S tuning seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from influray.config import Config
from influray.config_messages import near
from influray.data.catalogue import Catalogue
from influray.evaluation.rank_correlation import spearman
from influray.evaluation.stability import mean_interval
from influray.planning.arithmetic import Machine
from influray.planning.estimate import find_machine, find_split
from influray.planning.price import worker_seconds
from influray.planning.recipes import AGAIN, FULL, Recipe
from influray.planning.sample import PILOT, Chosen, Sample
from influray.protocols import ArtifactMismatch, ConfigError
from influray.scorers.propagation import propagating_scorers
from influray.steps.context import StepContext
from influray.steps.data import data
from influray.steps.preflight import Subject, check_config
from influray.steps.subject import settle_checkpoints
from influray.store.artifact import fingerprint, write_sealed
from influray.store.attribution import Attribution
from influray.store.row_view import RowView
from influray.store.run_directory import RunDirectory
from influray.validation import draws
from influray.validation.experiments import require_rates, result_path, retrain_missing
from influray.validation.reselection import Reselection
from influray.validation.scorers import RANDOM
from influray.validation.setting import Setting
from influray.validation.stability import task_means

LEAST_ROWS = 20
MOST = 0.9  # of the merit that is asked for where nothing else is said


@dataclass(frozen=True)
class Asked:
    """What is asked: the size of the sample, the recipes, whose choice is compared, and on what machine they cost."""

    rows: int = 1000
    seed: int = 0
    recipes: tuple[Recipe, ...] = ()
    selector: str = ""  # "" = the first of the config
    # Of the full recipe's merit that a recipe is to keep; None = what the full one keeps with other seeds, MOST at most
    least: float | None = None
    tune: bool = False
    device: str | None = None
    workers: int | None = None


def pilot(context: StepContext, source: RunDirectory, asked: Asked) -> None:
    """Try the recipes on a sample of the pool and write RUN/validate/pilot.json.

    `context` has the full recipe; `source` is where the catalogues of the whole pool and of its targets lie, or are
    made.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend.
    """
    name = _selector(context.config, asked)
    every = {one.name: settle_checkpoints(one.of(context.config)) for one in asked.recipes}
    for recipe, config in every.items():
        _check(recipe, config, context)
    machine = find_machine(context.config, asked.device, asked.workers)
    with context.progress.step("data"):
        data(context.beside(context.config, source))
    sample = Sample(context, source, asked.rows, asked.seed)
    fitted = {recipe: sample.fitted(config) for recipe, config in every.items()}
    found: dict[str, Chosen] = {}
    for recipe, config in fitted.items():
        with context.progress.step(f"recipe {recipe}"):
            found[recipe] = sample.chosen(config)
    rows = {recipe: _rows(sample, name, fitted[recipe], one) for recipe, one in found.items()}
    prices = _prices(machine, source, every, {recipe: sample.tokens_of(one.directory) for recipe, one in found.items()})
    agreement = _Agreement(found[FULL], sample, context.config.data.roles)
    lines = [
        {
            "name": one.name,
            "settings": dict(one.settings),
            "worker_seconds": prices[one.name],
            "correlation": agreement.correlation(found[one.name]),
            **agreement.of(rows[one.name], rows[FULL]),
        }
        for one in asked.recipes
    ]
    result: dict[str, Any] = {
        "experiment": PILOT,
        "tasks": list(dict.fromkeys(agreement.tasks)),
        "rows": len(sample.row_N),
        "pool": len(Catalogue(source.data("pool"))),
        "seed": asked.seed,
        "selector": name,
        "least": _least(asked, lines),
        "device": machine.device.name,
        "recipes": lines,
    }
    if asked.tune:
        with context.progress.step("tuning"):
            result |= _tuned(context.beside(sample.full, found[FULL].directory), agreement, rows, lines)
    result["cheapest"] = _cheapest(lines, result["least"])
    write_sealed(result_path(context.directory, PILOT), {**result, "fingerprint": fingerprint(result)})


def _selector(config: Config, asked: Asked) -> str:
    """Return the name of the selector whose choice is compared. Raises ConfigError where nothing can be."""
    known = {one.name: one for one in config.selectors}
    name = asked.selector or config.selectors[0].name
    if name not in known:
        raise ConfigError(f"--selector: {name!r} is none of the config{near(name, known)} (known: {', '.join(known)})")
    if known[name].method == "random":
        raise ConfigError(f"--selector: {name} draws its rows and looks at no score; take another")
    if asked.rows < LEAST_ROWS:
        raise ConfigError(f"--rows: {asked.rows} are too few to compare choices by; {LEAST_ROWS} are the least")
    if asked.least is not None and not 0 < asked.least <= 1:
        raise ConfigError(f"--keep: found {asked.least}, expected a share of the merit, such as 0.9")
    return name


def _check(name: str, config: Config, context: StepContext) -> None:
    """Raise ConfigError where a recipe cannot be run, or chooses from other data."""
    from influray.steps import steps_until

    for key in ("root", "pool", "targets"):
        if getattr(config.data, key) != getattr(context.config.data, key):
            raise ConfigError(f"--recipe {name}: data.{key}: recipes choose from the same rows for the same targets")
    if propagating_scorers(config):
        raise ConfigError(
            f"--recipe {name}: attribution.scorer: {config.attribution.scorer!r} carries over the scores of another "
            "run, whose rows are not those of a sample; pilot the config of that run"
        )
    steps = tuple(step.name for step in steps_until("select", config))
    try:
        check_config(Subject(config, context.directory, steps, "select"))
    except (ConfigError, ArtifactMismatch) as error:
        raise type(error)(f"--recipe {name}: {error}") from error


def _rows(sample: Sample, name: str, config: Config, one: Chosen) -> np.ndarray:
    """Return the places in the sample that a recipe chooses, int64 in order of choice."""
    selector = next(each for each in config.selectors if each.name == name)
    return sample.rows_of(one.directory)[Reselection(config, one.directory).select(selector, one.matrix)]


def _prices(
    machine: Machine, source: RunDirectory, configs: Mapping[str, Config], tokens: Mapping[str, int]
) -> dict[str, float | None]:
    """Return the worker's seconds of every recipe for the whole pool; `tokens` are those of the sample in each."""
    full = configs[FULL]
    found = {split: find_split(full, source, split, current=True) for split in ("pool", "target")}
    made = {}
    for name, config in configs.items():
        factor = tokens[name] / max(1, tokens[FULL])
        pool = found["pool"]
        work = pool.work._replace(
            tokens=round(factor * pool.work.tokens),
            loss_tokens=round(factor * pool.work.loss_tokens),
            squares=round(factor**2 * pool.work.squares),
        )
        made[name] = worker_seconds(config, machine, {**found, "pool": replace(pool, work=work)})
    return made


class _Agreement:
    """How recipes agree with the full one, whose standardised influence is the measure."""

    def __init__(self, full: Chosen, sample: Sample, roles: Mapping[str, str]) -> None:
        assert isinstance(full.matrix, Attribution)
        self._sample = sample
        self.tasks = tuple(task for task in dict.fromkeys(full.matrix.groups) if task not in roles)
        self.catalogue_N = np.full(len(sample.row_N), -1)  # row of the full recipe's catalogue at each place
        place_n = sample.rows_of(full.directory)
        self.catalogue_N[place_n] = np.arange(len(place_n))
        self._mean_NG = self._means(full.matrix, full.directory)

    def _means(self, matrix: Attribution, directory: RunDirectory) -> np.ndarray:
        """Return the mean over a task's columns of the standardised influence of each place, NaN for none, [N, G]."""
        place_n = self._sample.rows_of(directory)[matrix.rows]
        known_n = place_n >= 0
        mean_NG = np.full((len(self._sample.row_N), len(self.tasks)), np.nan)
        mean_NG[place_n[known_n]] = task_means(matrix, matrix.rows[known_n], self.tasks)
        return mean_NG

    def correlation(self, one: Chosen) -> float | None:
        """Return Spearman's rho over rows of the influence on a task, mean over tasks; None where some rows have none.

        Those are the rows that a cascade did not let pass.
        """
        if isinstance(one.matrix, RowView):
            return None
        mean_NG = self._means(one.matrix, one.directory)
        both_N = np.isfinite(mean_NG).all(axis=1) & np.isfinite(self._mean_NG).all(axis=1)
        return float(spearman(self._mean_NG[both_N], mean_NG[both_N]).mean())

    def of(self, place_n: np.ndarray, full_n: np.ndarray) -> dict[str, Any]:
        """Return the share of the full recipe's rows that are chosen too, and of their merit, by task and in the mean.

        The merit of rows for a task is their mean standardised influence on it as the full recipe has it: 0 for rows
        drawn at random.
        """
        mine_G, full_G = (np.nanmean(self._mean_NG[rows], axis=0) for rows in (place_n, full_n))
        return {
            "rows": len(place_n),
            "overlap": len(np.intersect1d(place_n, full_n)) / len(full_n),
            "merit": float(mine_G.mean() / full_G.mean()),
            "merit_of_tasks": dict(zip(self.tasks, mine_G.tolist(), strict=True)),
        }


def _tuned(
    context: StepContext, agreement: _Agreement, rows: Mapping[str, np.ndarray], lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Tune on every recipe's rows and on random ones, and add the losses to the lines; return those of random rows."""
    setting = Setting(context)
    catalogue = {name: np.sort(agreement.catalogue_N[place_n]) for name, place_n in rows.items()}
    scored, full = setting.candidates, catalogue[FULL]
    tokens = int(context.catalogue("pool").facts("tokens")["tokens"].astype(np.int64)[full].sum())
    catalogue[RANDOM] = draws.random_rows(scored, setting.tokens, tokens, setting.config.seed)
    jobs = {name: setting.with_every_seed(rows_n[rows_n >= 0]) for name, rows_n in catalogue.items()}
    every = [one for found in jobs.values() for one in found]
    require_rates(PILOT, every)
    retrain_missing(context, setting.bench, every)
    split, groups = ("test", setting.test_tasks) if setting.test_tasks else ("target", setting.tasks)
    member_RG = np.array([[one == task for task in agreement.tasks] for one in groups], float)
    member_RG = member_RG[:, member_RG.any(axis=0)]
    loss_S = {
        name: (setting.losses(found)[split] @ (member_RG / member_RG.sum(axis=0))).mean(axis=1)
        for name, found in jobs.items()
    }

    def told(name: str) -> dict[str, Any]:
        less_S = loss_S[name] - loss_S[FULL]
        interval = mean_interval(less_S.tolist()) if name != FULL else None
        less = {"value": float(less_S.mean()), "interval": interval and list(interval)}
        return {"loss": float(loss_S[name].mean()), "loss_less_full": less}

    for line in lines:
        line |= told(line["name"])
    return {"random": told(RANDOM), "records": split, "tuning_seeds": list(setting.config.seeds)}


def _least(asked: Asked, lines: Sequence[Mapping[str, Any]]) -> float:
    """Return how much of the merit a recipe is to keep."""
    if asked.least is not None:
        return asked.least
    again = next((one["merit"] for one in lines if one["name"] == AGAIN), MOST)
    return min(MOST, max(0.0, again))


def _cheapest(lines: Sequence[Mapping[str, Any]], least: float) -> str | None:
    """Return the recipe of the least cost among the cheaper ones that keep so much of the merit."""
    full = next(one for one in lines if one["name"] == FULL)
    if full["worker_seconds"] is None:
        return None
    kept = [
        one
        for one in lines
        if one["name"] not in (FULL, AGAIN)
        and one["merit"] >= least
        and one["worker_seconds"] is not None
        and one["worker_seconds"] < full["worker_seconds"]
    ]
    return min(kept, key=lambda one: one["worker_seconds"])["name"] if kept else None
