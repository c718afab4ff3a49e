"""warmup, tune, evaluate: the steps that train and judge. Each is a list of jobs; a finished job is not repeated."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.config import Config
from influray.protocols import ConfigError
from influray.registry import WARMED, featurizer_reads
from influray.steps.checks_of_data import require_tests_apart
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Step
from influray.store.artifact import fingerprint, require_manifest, whole_manifest
from influray.store.mirror import address_of

if TYPE_CHECKING:
    from influray.runtime.training_worker import EvaluationJob, TrainingJob

logger = logging.getLogger(__name__)

BASE, FULL = "base", "full"  # the untouched model, and the one tuned on the whole pool
KNOWS = 0.9  # of the loss of guessing: above it a base knows nothing of a task


def warmup(context: StepContext) -> StepResult:
    """Train the warmup checkpoints on a seeded subset of the pool or of the targets, or import the user's.

    A pool that only grew keeps its warmup: the subset is drawn from the rows that were there when it was trained,
    and the job's fingerprint holds the content of these rows, so a row that changed trains it again. Features that
    read no checkpoint need no warmup; one that is there stays as it is.

    Raises:
        ConfigError: no warmup is needed, and it is the step that was asked for.
        DataError: as `require_tests_apart`, of a warmup on targets.
    """
    if context.reads not in WARMED:
        featurizer = context.config.features.featurizer
        if context.until == "warmup":
            raise ConfigError(
                f"features.featurizer: {featurizer!r} reads no checkpoint, so there is nothing to warm up"
            )
        logger.info("warmup: %s reads no checkpoint, nothing to do", featurizer)
        return StepResult(fingerprint([]), skipped=True, facts={"checkpoints": 0})
    on_pool = context.config.warmup.train_on == "pool"
    job, manifest = _of_pool(context) if on_pool else _of_targets(context)
    skipped = manifest is not None
    if manifest is None:
        from influray.model.loading import check_lora_targets
        from influray.runtime.training import run_jobs

        check_lora_targets(context.config.model)  # before a cluster is asked for anything
        assert context.cluster
        (manifest,) = run_jobs(
            [job], context.resources, context.progress.current.on_event, context.progress.current.on_jobs
        )
    require_moved(context.config, manifest)
    facts = {name: manifest[name] for name in ("checkpoints", "mean_learning_rates", "imported")}
    trained = {name: manifest[name] for name in ("rows", "tokens", "steps") if name in manifest}
    files = [f"warmup/checkpoint-{k}/state.json" for k in range(1, manifest["checkpoints"] + 1)]
    facts = {**facts, **trained}
    return StepResult(manifest["fingerprint"], skipped, facts, ["warmup/manifest.json", *files])


def require_moved(config: Config, manifest: Mapping[str, Any]) -> None:
    """Say which checkpoints weigh nothing; raise ConfigError where all do, before features are made of them."""
    still = [k for k, rate in enumerate(manifest["mean_learning_rates"], start=1) if rate == 0]
    if config.attribution.weights != "learning_rate" or config.warmup.train_on == "targets" or not still:
        return
    text = (
        f"warmup: the learning rate rises from 0, and {manifest.get('steps', 'few')} optimizer steps in "
        f"{manifest['checkpoints']} epochs are too few: checkpoints {', '.join(map(str, still))} were trained at 0"
    )
    advice = f"lower warmup.batch_size (now {config.warmup.batch_size}), or raise warmup.fraction or warmup.epochs"
    if len(still) == len(manifest["mean_learning_rates"]):
        raise ConfigError(f"{text}; {advice}")
    logger.warning("%s and weigh nothing; %s", text, advice)


def tune(context: StepContext) -> StepResult:
    """Fine-tune the base on every selection that the config names, with every seed."""
    from influray.runtime.training_worker import committed

    jobs = list(_tune_jobs(context))
    todo = [job for job in jobs if committed(job) is None]
    if todo:
        from influray.runtime.training import run_jobs

        assert context.cluster
        progress = context.progress.current
        progress.expect(len(jobs), "fine-tunings", done=len(jobs) - len(todo))
        run_jobs(jobs, context.resources, progress.on_event, progress.on_jobs)
    manifests = [require_manifest(job.out, "tune") for job in jobs]
    facts = {"tunings": len(jobs), "carried_out": len(todo), "steps": [manifest["steps"] for manifest in manifests]}
    files = [f"tune/{name}/seed-{seed}/manifest.json" for name, seed in tuned(context)]
    return StepResult(fingerprint([manifest["fingerprint"] for manifest in manifests]), not todo, facts, files)


def evaluate(context: StepContext) -> StepResult:
    """Judge the base and every tuned model on the held-out records."""
    from influray.runtime.training_worker import committed

    if not any(target.test for target in context.config.data.targets.values()):
        if context.until == "evaluate":
            raise ConfigError("data.targets: no task has a `test`; name held-out records to evaluate on")
        logger.info("evaluate: no task has a `test`, nothing to do")
        return StepResult(fingerprint([]), True, {"evaluations": 0})
    jobs = list(_evaluation_jobs(context))
    todo = [job for job in jobs if committed(job) is None]
    if todo:
        from influray.runtime.training import run_jobs

        assert context.cluster
        progress = context.progress.current
        progress.expect(len(jobs), "models", done=len(jobs) - len(todo))
        run_jobs(jobs, context.resources, progress.on_event, progress.on_jobs)
    unknown = _unknown_to_base(context, committed(jobs[0]))
    facts = {"evaluations": len(jobs), "carried_out": len(todo), "unknown_to_base": unknown}
    files = [f"evaluation/{name}/seed-{seed}.json" for name, seed in evaluated(context)]
    return StepResult(fingerprint([job.fingerprint for job in jobs]), not todo, facts, files)


def _unknown_to_base(context: StepContext, evaluation: Mapping[str, Any] | None) -> list[str]:
    """Return, and warn of, tasks that the untouched base answers no better than by guessing among its tokens."""
    guessing = KNOWS * math.log(len(context.tuned.tokenizer))
    assert evaluation is not None, "it was made just now"
    found = evaluation["tasks"]
    tasks = [task for task, result in found.items() if result["loss"] > guessing]
    if tasks:
        logger.warning(
            "the base knows nothing of %s: its loss there is %s, and guessing among its %d tokens gives %.2f; what is "
            "tuned on it says little of a model that does",
            *(", ".join(tasks), ", ".join(f"{found[task]['loss']:.2f}" for task in tasks)),
            *(len(context.tuned.tokenizer), guessing / KNOWS),
        )
    return tasks


def _of_pool(context: StepContext) -> tuple[TrainingJob, dict[str, Any] | None]:
    """Return the warmup on the pool, or of imported checkpoints, and its manifest where it is there."""
    from influray.data.catalogue import Catalogue
    from influray.runtime.training_worker import committed

    rows = len(Catalogue(context.whole_pool))
    recorded = _drawn_from(context)
    if 0 < recorded < rows:
        job = _warmup_job(context, recorded)
        manifest = committed(job)
        if manifest is not None:
            logger.info("warmup: kept; the pool has grown from %d to %d rows since", recorded, rows)
            return job, manifest
    job = _warmup_job(context, rows)
    return job, committed(job)


def _of_targets(context: StepContext) -> tuple[TrainingJob, dict[str, Any] | None]:
    """Return the warmup on the targets and its manifest where it is there."""
    from influray.model.finetune import warmup_rows
    from influray.runtime.training_worker import TrainingJob, committed

    cfg = context.config
    require_tests_apart(context.directory)
    group_T = np.array(context.catalogue("target").groups, object)
    drawn = []
    for task in dict.fromkeys(group_T.tolist()):
        row_n = np.flatnonzero(group_T == task)
        drawn += row_n[warmup_rows(len(row_n), cfg.warmup.fraction, cfg.warmup.seed)].tolist()
    job = TrainingJob(
        kind="warmup",
        config=cfg.model_dump(mode="json"),
        catalogue=address_of(context.directory.data("target")),
        rows=sorted(drawn),
        out=address_of(context.directory.warmup),
        seed=cfg.warmup.seed,
        inputs={"base": context.model_digest},
    )
    return job, committed(job)


def _warmup_job(context: StepContext, drawn_from: int) -> TrainingJob:
    from influray.model.finetune import warmup_rows
    from influray.runtime.training_worker import TrainingJob

    cfg = context.config
    imported = bool(cfg.warmup.checkpoints)
    rows = np.zeros(0, np.int64) if imported else warmup_rows(drawn_from, cfg.warmup.fraction, cfg.warmup.seed)
    return TrainingJob(
        kind="warmup",
        config=cfg.model_dump(mode="json"),
        catalogue=address_of(context.whole_pool),
        rows=rows.tolist(),
        out=address_of(context.directory.warmup),
        seed=cfg.warmup.seed,
        inputs={"base": context.model_digest},
        pool_rows=drawn_from,
    )


def _drawn_from(context: StepContext) -> int:
    """Return of how many pool rows those of the warmup that is there were drawn, 0 where that is not known."""
    return int((whole_manifest(context.directory.warmup) or {}).get("pool_rows", 0))


def tuned(context: StepContext) -> list[tuple[str, int]]:
    """Return (selection, seed) of every fine-tuning, in the order of the config."""
    cfg = context.config.tune
    assert cfg is not None
    names = [s.name for s in context.config.selectors] if cfg.selections == "all" else list(cfg.selections)
    return [(name, seed) for name in names for seed in cfg.seeds]


def evaluated(context: StepContext) -> list[tuple[str, int]]:
    """Return (selection, seed) of every evaluation, the untouched base's first."""
    return [(BASE, 0), *tuned(context)]


def _tune_jobs(context: StepContext) -> Iterator[TrainingJob]:
    from influray.data.catalogue import Catalogue
    from influray.runtime.training_worker import TrainingJob
    from influray.store.selection import read_selection

    config, directory = context.tuned.config.model_dump(mode="json"), context.directory
    inputs = {"base": context.tuned.model_digest, **_encoding(context)}
    whole = Catalogue(context.whole_pool) if FULL in dict(tuned(context)) else ()
    for name, seed in tuned(context):
        rows = range(len(whole)) if name == FULL else read_selection(directory.selection(name)).rows
        yield TrainingJob(
            kind="tune",
            config=config,
            catalogue=address_of(context.whole_pool if name == FULL else directory.data("pool")),
            rows=[int(row) for row in rows],
            out=address_of(directory.tune(name, seed)),
            seed=seed,
            inputs=inputs,
            facts={} if name == FULL else _facts_of(context, name),
        )


def _facts_of(context: StepContext, name: str) -> dict[str, float]:
    """Return the numbers of a selection that stand beside its tuning wherever that is reported."""
    from influray.store.selection import read_summary

    found = read_summary(context.directory.selection(name))
    facts = {"rows": found["budget"]["examples"], "tokens": found["counts"]["tokens"]}
    facts |= {f"aid_{key}": found["aid"][key] for key in ("macro", "worst", "spread")}
    return {f"selection/{key}": float(value) for key, value in facts.items()}


def _evaluation_jobs(context: StepContext) -> Iterator[EvaluationJob]:
    from influray.model.loading import writing_digest
    from influray.runtime.training_worker import EvaluationJob

    other, directory = context.tuned, context.directory
    config, encoding = other.config.model_dump(mode="json"), _encoding(context)
    for name, seed in evaluated(context):
        inputs: dict[str, Any] = {"base": other.model_digest, "tokenizer": writing_digest(other.tokenizer), **encoding}
        adapter = None
        if name != BASE:
            inputs["adapter"] = require_manifest(directory.tune(name, seed), "tune")["digest"]
            adapter = address_of(directory.tune(name, seed) / "adapter")
        yield EvaluationJob(
            config=config,
            catalogue=address_of(directory.data("test")),
            adapter=adapter,
            out=address_of(directory.evaluation(name, seed)),
            inputs=inputs,
        )


def _encoding(context: StepContext) -> dict[str, Any]:
    """Return what decides the tokens of `tune.model`; nothing where those of the catalogue are taken."""
    if context.tuned is context:
        return {}
    from influray.data.chat import split_encoder
    from influray.model.loading import tokenizer_digest

    tokenizer = context.tuned.tokenizer
    return {
        "encoding": [
            tokenizer_digest(tokenizer),
            split_encoder(context.tuned.config, tokenizer, "pool").template_digest,
        ]
    }


def _describe_warmup(config: Config) -> str:
    if featurizer_reads(config.features.featurizer) not in WARMED:
        return "not asked for"
    if config.warmup.checkpoints:
        return f"{len(config.warmup.checkpoints)} imported checkpoints"
    if config.warmup.train_on == "targets":
        adapters = "one adapter" if config.warmup.pooled else "an adapter a task"
        return f"{adapters}, {config.warmup.fraction:.1%} of the targets, {config.warmup.epochs} epochs"
    return f"{config.warmup.fraction:.1%} of the pool, {config.warmup.epochs} epochs"


def _describe_tune(config: Config) -> str:
    if config.tune is None:
        return "not asked for"
    tokens = f", {config.tune.tokens:,} tokens each" if config.tune.tokens else ""
    other = f", of {config.tune.model.base}" if config.tune.model else ""
    return f"{_listed(config.tune.selections)}, seeds {_listed(config.tune.seeds)}{tokens}{other}"


def _describe_evaluate(config: Config) -> str:
    tests = sum(1 for target in config.data.targets.values() if target.test)
    return "not asked for" if config.tune is None else f"{tests} tasks with a test"


def _listed(what: str | Sequence[object]) -> str:
    return what if isinstance(what, str) else ", ".join(map(str, what))


WARMUP = Step("warmup", warmup, ("warmup", "model"), _describe_warmup)
TUNE = Step("tune", tune, ("tune", "model"), _describe_tune, section="tune")
EVALUATE = Step("evaluate", evaluate, ("evaluation", "model"), _describe_evaluate, section="tune")
