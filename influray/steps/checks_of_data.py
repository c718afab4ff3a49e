"""Checks of limits, budgets and rates: against the config, and against the catalogue where one is needed.

influray.steps.preflight lists them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from influray.config import Config, SelectorConfig
from influray.config_base import as_written
from influray.config_model import FinetuneConfig
from influray.config_select import AutoBudget, TokenBudget
from influray.data.catalogue import Catalogue
from influray.protocols import Columns, ConfigError, DataError
from influray.registry import SCORERS, WARMED, featurizer_reads
from influray.scorers.exact_run import all_targets
from influray.scorers.options import expected_stores, make_scorer
from influray.scorers.propagation import propagating_scorers
from influray.steps.subject import Subject, context_length, under
from influray.store.artifact import read_manifest, whole_manifest
from influray.store.run_directory import RunDirectory


def limits(subject: Subject) -> None:
    """Files of ids, bounds, and the tasks that limits and weights name."""
    from influray.selectors.api import read_ids, resolve_limits
    from influray.selectors.roles import require_sought

    config = subject.config
    root, roles = Path(config.data.root), config.data.roles
    tasks = _column_tasks(config)
    for task in (task for task in roles if task not in tasks):
        raise ConfigError(
            f"data.targets.{task}.role: {roles[task]}, but attribution.scorer {config.attribution.scorer!r} makes no "
            f"column of the task (its columns: {', '.join(tasks)}), so that nothing says what a row does to it; take a "
            "scorer that looks at targets, or leave the role out"
        )
    for index, selector in enumerate(config.selectors):
        key = f"selectors.{index}"
        limits = selector.constraints
        with under(key):
            ids = {
                kind: read_ids(f"constraints.{kind}", getattr(limits, kind), root) for kind in ("include", "exclude")
            }
            both = sorted(set(ids["include"]) & set(ids["exclude"]))
            if both:
                raise ConfigError(f"constraints.exclude: the id {both[0]!r} stands in constraints.include too")
            budget = selector.budget
            if isinstance(budget, int):
                resolve_limits(budget, limits, budget, root)
            elif isinstance(budget, AutoBudget):
                _require_cosines(config)
                resolve_limits(10**9, limits, 10**9, root)
            elif not isinstance(budget, float):
                resolve_limits({"tokens": budget.tokens}, limits, 10**9, root)
                if any(one.min for one in (*limits.sources.values(), *limits.tasks.values())):
                    raise ConfigError("constraints: a min needs a budget in examples; with budget.tokens give max only")
            weights = selector.options.get("task_weights")
            require_sought("constraints.tasks", limits.tasks, roles)
            require_sought("options.task_weights", weights, roles)
            _require_tasks("constraints.tasks", limits.tasks, tasks)
            _require_tasks("options.task_weights", weights if isinstance(weights, dict) else {}, tasks)


def _require_cosines(config: Config) -> None:
    """Raise ConfigError where a budget is to choose itself by scores that are known to be no cosines."""
    section = config.attribution
    similarity = section.options.get("similarity", "cosine")
    known = section.scorer in SCORERS
    if known and (section.scorer not in ("inner_product", "whitened") or similarity != "cosine"):
        named = section.scorer if similarity == "cosine" else f"{section.scorer} with similarity {similarity}"
        raise ConfigError(
            f"budget.auto: otm compares rows by cosines, and those of attribution.scorer {named} are none; take "
            "whitened, or inner_product with similarity cosine, or give a number"
        )


def _column_tasks(config: Config) -> tuple[str, ...]:
    """Return the tasks of the columns that the scorer will make."""
    names = tuple(config.data.targets)
    scorer = make_scorer(config.attribution.scorer, expected_stores(config), config.attribution.options)
    return tuple(dict.fromkeys(scorer.columns(Columns(tuple(range(len(names))), names, names)).tasks))


def _require_tasks(key: str, named: Iterable[str], known: tuple[str, ...]) -> None:
    from influray.config_messages import near

    for task in named:
        if task not in known:
            raise ConfigError(
                f"{key}.{task}: no column has this task{near(str(task), dict.fromkeys(known))} "
                f"(known: {', '.join(known)})"
            )


def exact_run(subject: Subject) -> None:
    """The run whose scores are carried over has rows of this pool alone, and the same targets."""
    for scorer in propagating_scorers(subject.config, cascade=False):
        scorer.start(subject.pool, all_targets(Catalogue(subject.directory.data("target"))))


def budgets(subject: Subject) -> None:
    """The pool holds every budget."""
    rows = len(subject.pool)
    never = subject.pool.never_scored
    passed = f", of which cascade.share lets {rows} pass; lower it, or raise that" if never else ""
    for index, selector in enumerate(subject.config.selectors):
        key, budget = f"selectors.{index}.budget", selector.budget
        if isinstance(budget, int) and budget > rows:
            raise ConfigError(f"{key}: {budget} examples of a pool of {rows + never} usable rows{passed}")
        if isinstance(budget, float) and int(as_written(budget) * (rows + never)) < 1:
            raise ConfigError(f"{key}: {budget} of {rows + never} usable rows is less than one example")
        if isinstance(budget, TokenBudget):
            tokens_N = subject.pool.facts("tokens")["tokens"]
            total = int(tokens_N.sum())
            if budget.tokens > total:
                raise ConfigError(
                    f"{key}.tokens: {budget.tokens} tokens, and {'what passes the cascade' if never else 'the pool'} "
                    f"has {total} in {rows} usable rows; lower it, or "
                    f"{'raise cascade.share' if never else 'take 1.0 for the whole pool'}"
                )
            if budget.tokens < int(tokens_N.min()):
                raise ConfigError(
                    f"{key}.tokens: no row fits into {budget.tokens} tokens; the shortest has {int(tokens_N.min())}"
                )


def positions(subject: Subject) -> None:
    """No row is longer than the model has positions for."""
    length = context_length(Path(subject.config.model.base))
    if length is None or not subject.loads_model:
        return
    longest = int(subject.pool.facts("tokens")["tokens"].max())
    if longest > length:
        raise ConfigError(
            f"data.max_tokens: {subject.config.data.max_tokens}, the pool's longest row has {longest} tokens, and "
            f"{subject.config.model.base!r} has positions for {length} (config.json); lower it to that"
        )


def ids_and_sources(subject: Subject) -> None:
    """Ids and sources that limits name are in the pool, and the limits can be kept there."""
    from influray.data.pool_facts import PoolFacts
    from influray.selectors.api import check_limits

    root, total = Path(subject.config.data.root), len(subject.pool)
    facts = PoolFacts(subject.pool, np.arange(total))
    for index, selector in enumerate(subject.config.selectors):
        with under(f"selectors.{index}"):
            check_limits(facts, total, selector.budget, selector.constraints, root, subject.pool.never_scored)


def tests_apart(subject: Subject) -> None:
    """No test record is among targets that a warmup trains on, that of a cascade's cheap pass with it."""
    config, cheap = subject.config, subject.config.cascade
    trained = subject.trains and config.warmup.train_on == "targets"
    if cheap is not None and featurizer_reads(cheap.features.featurizer) in WARMED:
        trained |= (cheap.warmup or config.warmup).train_on == "targets"
    if trained:
        require_tests_apart(subject.directory)


def require_tests_apart(directory: RunDirectory) -> None:
    """Compare the text of every target with that of every test record, where there is any.

    Raises:
        DataError: they share one, which a model would be trained on and then judged by.
    """
    from influray.data.catalogue import Catalogue

    if not (read_manifest(directory.data("test")) or {}).get("rows"):
        return
    target, test = (Catalogue(directory.data(split)) for split in ("target", "test"))
    row_of = {one.text: one.row for one in target.texts(0, len(target))}
    for one in test.texts(0, len(test)):
        if (row := row_of.get(one.text)) is not None:
            named = [
                f"{it.cell(n, 'id')!r} of data.targets.{it.groups[n]}" for it, n in ((target, row), (test, one.row))
            ]
            raise DataError(
                f"warmup.train_on: targets would train on a test record: the target {named[0]}.files reads as "
                f"the record {named[1]}.test does; take it out of one of them"
            )


def warmup_rates(subject: Subject) -> Iterator[str]:
    """The rates of the warmup: an epoch at learning rate 0 makes a checkpoint that is worth nothing."""
    from influray.model.schedule import mean_rates

    config = subject.config
    manifest, warmup = whole_manifest(subject.directory.warmup), config.warmup
    if not subject.trains or manifest is not None:
        return
    if warmup.train_on == "targets":
        for what, count in _target_counts(subject).items():
            if not any(mean_rates(warmup, count)):
                raise ConfigError(_no_rate("warmup", warmup, what, count))
        return
    if config.attribution.weights != "learning_rate":
        return
    rows = max(1, int(as_written(warmup.fraction) * subject.whole_rows))
    rates = mean_rates(warmup, rows)
    still = [str(k) for k, rate in enumerate(rates, start=1) if rate == 0]
    if not still:
        return
    text = (
        f"warmup: {rows} rows in batches of {warmup.batch_size} are {-(-rows // warmup.batch_size)} optimizer step(s) "
        f"an epoch, and the rate rises from 0 (warmup.warmup_ratio {warmup.warmup_ratio:g}): checkpoint "
        f"{', '.join(still)} of {len(rates)} is trained at 0"
    )
    advice = "lower warmup.batch_size, set warmup.warmup_ratio to 0, or raise warmup.fraction or warmup.epochs"
    if len(still) == len(rates):
        raise ConfigError(f"warmup.warmup_ratio: nothing is trained. {text}; {advice}")
    yield f"{text} and weighs nothing, though its features are computed; {advice}"


def _target_counts(subject: Subject) -> dict[str, int]:
    """Return how many targets each adapter of a warmup on targets is trained on."""
    from influray.data.catalogue import Catalogue

    warmup, groups = subject.config.warmup, Catalogue(subject.directory.data("target")).groups
    counts = {task: max(1, int(as_written(warmup.fraction) * groups.count(task))) for task in groups}
    return {"+".join(tasks): sum(counts[task] for task in tasks) for tasks in warmup.tuned_on(groups)[1:]}


def tune_rates(subject: Subject) -> Iterator[str]:
    """The settings of tune fit the selections: some step has a rate above 0, and a batch is no more than the rows."""
    from influray.model.schedule import mean_rates

    tune, rows = subject.config.tune, subject.whole_rows
    if tune is None:
        return
    counts = {s.name: _count(s, subject) for s in subject.config.selectors}
    names = list(counts) if tune.selections == "all" else tune.selections
    small = []
    for name in names:
        count = rows if name == "full" else counts[name]
        if tune.tokens is None and not any(mean_rates(tune, count)):
            raise ConfigError(_no_rate("tune", tune, name, count))
        if count < tune.batch_size:
            small.append(f"{name} ({count})")
    if small and tune.tokens is None:
        yield (
            f"tune.batch_size: {tune.batch_size} is more than the rows of {', '.join(small)}: every epoch is one step; "
            "lower it, or set tune.steps"
        )


def _count(selector: SelectorConfig, subject: Subject) -> int:
    """Return about how many rows a selection will hold."""
    budget = selector.budget
    if isinstance(budget, TokenBudget):
        return max(1, int(budget.tokens / float(subject.pool.facts("tokens")["tokens"].mean())))
    most = budget.most if isinstance(budget, AutoBudget) else budget  # the most that it may be
    return most if isinstance(most, int) else max(1, int(as_written(most) * subject.whole_rows))


def _no_rate(section: str, config: FinetuneConfig, name: str, rows: int) -> str:
    return (
        f"{section}.warmup_ratio: {config.warmup_ratio:g} of the optimizer steps on {name!r} ({rows} rows, batch_size "
        f"{config.batch_size}) is all of them, at learning rate 0; lower {section}.batch_size or set "
        f"{section}.warmup_ratio to 0"
    )
