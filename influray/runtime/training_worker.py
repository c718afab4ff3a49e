"""What one training or evaluation is, and how a worker carries it out; nothing here knows how it got there.

A result is made in a hidden folder named by its fingerprint, beside its place, and renamed into it with its
manifest: a killed job goes on from its last checkpoint there, and an older result stands until the new one is whole.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from influray.config import Config, parse_config
from influray.config_model import FinetuneConfig
from influray.job_status import Tell, tell_nobody
from influray.protocols import ArtifactMismatch, ConfigError, DamagedArtifact, DataError, TokenizedExample
from influray.runtime.job_examples import examples_of, row_ranges, text_digest
from influray.runtime.warmups import Part, import_checkpoints, imported_facts, parts_of, train_adapters
from influray.store.artifact import (
    SCHEMA,
    describe,
    fingerprint,
    read_manifest,
    read_sealed,
    replace_folder,
    require_manifest,
    write_manifest,
    write_sealed,
)
from influray.store.checks import broken, check_file, set_aside
from influray.store.mirror import children, local, present_folder, remove_folder
from influray.store.run_directory import versions

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue
    from influray.model.history import Report

logger = logging.getLogger(__name__)

TUNE_CHECKPOINT_SECONDS = 60.0  # a tuning keeps its last checkpoint only, and writes none more often
NUMERIC = ("torch", "transformers", "peft")  # the versions that weights depend on
JUDGED = (*NUMERIC, "tokenizers")  # and those that an evaluation does


@dataclass(frozen=True)
class TrainingJob:
    """One fine-tuning: a warmup, with a checkpoint per epoch or per task, or a tune, which leaves its adapter.

    `rows` are catalogue rows, or the path of a .npy file of them; they count as a set. A warmup whose config lists
    `warmup.checkpoints` imports these and trains nothing. `inputs` are digests of what the job reads beside the
    catalogue, such as the base model. `out` is a folder: RUN/warmup, or RUN/tune/NAME/seed-S. `pool_rows`, of how many
    rows those of a warmup were drawn, is kept in its manifest and makes no difference to what it is; nor do `facts`,
    numbers that are told where its section reports to.
    """

    kind: Literal["warmup", "tune"]
    config: Mapping[str, Any]  # Config.model_dump(mode="json")
    catalogue: str
    rows: Sequence[int] | str
    out: str
    seed: int
    inputs: Mapping[str, Any] = field(default_factory=dict)
    pool_rows: int = 0
    facts: Mapping[str, float] = field(default_factory=dict)

    @cached_property
    def parsed(self) -> Config:
        return parse_config(self.config)

    @property
    def section(self) -> FinetuneConfig:
        """The hyper-parameters, with the job's seed in the place of the config's."""
        section = self.parsed.warmup if self.kind == "warmup" else self.parsed.tune
        if section is None:
            raise ConfigError("tune: required to tune, but not given (a mapping; {} takes all defaults)")
        fields = {name: getattr(section, name) for name in FinetuneConfig.model_fields}
        return FinetuneConfig(**{**fields, "seed": self.seed})

    @property
    def encodes(self) -> bool:
        """Whether the model that is tuned is another than the one whose tokens the catalogue has."""
        return self.kind == "tune" and self.parsed.tune is not None and self.parsed.tune.model is not None

    @property
    def tokens(self) -> int | None:
        """Where the training ends in tokens; None where epochs or steps say it."""
        return self.parsed.tune.tokens if self.kind == "tune" and self.parsed.tune else None

    @property
    def report(self) -> Report:
        """Where its steps are reported."""
        from influray.model.history import Report

        section = self.parsed.warmup if self.kind == "warmup" else self.parsed.tune
        place = local(self.out)
        name = "/".join(place.parts[-2:] if self.kind == "warmup" else place.parts[-4:])
        return Report(() if section is None else section.report_to, name, self.facts)

    @property
    def imports(self) -> bool:
        """Whether the user's own checkpoints take the place of training."""
        return self.kind == "warmup" and bool(self.parsed.warmup.checkpoints)

    @property
    def on_targets(self) -> bool:
        """Whether it trains an adapter for each task, and the catalogue is that of the targets."""
        return self.kind == "warmup" and self.parsed.warmup.train_on == "targets"

    @cached_property
    def parts(self) -> list[Part]:
        """What each of these adapters is trained on."""
        return parts_of(self.parsed.warmup, _catalogue(self).groups, self.row_numbers)

    @cached_property
    def row_numbers(self) -> np.ndarray:
        """The rows, ascending and without repeats, int64."""
        rows = np.load(self.rows, allow_pickle=False) if isinstance(self.rows, str) else np.array(self.rows)
        # Ascending: two selections of the same rows in another order of choice are the same training.
        return np.unique(rows.astype(np.int64))

    @cached_property
    def fingerprint(self) -> str:
        """What the result depends on; reads the tokens of the rows."""
        if self.imports:
            return _fingerprint(self, NUMERIC, imported=list(map(imported_facts, self.parsed.warmup.checkpoints)))
        catalogue = _catalogue(self)
        content = [
            (start, stop, catalogue.content_digest(start, stop))
            for start, stop in row_ranges(self.row_numbers, catalogue, self.catalogue)
        ]
        if self.encodes:
            content = [(*one, text_digest(catalogue, *one[:2])) for one in content]
        section = self.section.model_dump(mode="json") | ({"tokens": self.tokens} if self.tokens else {})
        parts = {"parts": [[part.tasks, part.rows.tolist()] for part in self.parts]} if self.on_targets else {}
        return _fingerprint(self, NUMERIC, section=section, rows=content, **parts)


@dataclass(frozen=True)
class EvaluationJob:
    """One evaluation on a catalogue of held-out records: of a tuned adapter, or of the base where `adapter` is None.

    `out` is a JSON file, RUN/evaluation/NAME/seed-S.json; `inputs` are digests, of the adapter, of the base model and
    of how its tokenizer writes.
    """

    config: Mapping[str, Any]
    catalogue: str
    adapter: str | None
    out: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar = "evaluation"

    @cached_property
    def parsed(self) -> Config:
        return parse_config(self.config)

    @property
    def encodes(self) -> bool:
        """Whether the model that is judged is another than the one whose tokens the catalogue has."""
        return self.parsed.tune is not None and self.parsed.tune.model is not None

    @cached_property
    def fingerprint(self) -> str:
        settings, tuned = self.parsed.evaluation.model_dump(mode="json"), self.adapter is not None
        return _fingerprint(self, JUDGED, evaluation=settings, catalogue=_catalogue(self).digest, adapter=tuned)


Job = TrainingJob | EvaluationJob


def _fingerprint(job: Job, packages: Sequence[str], **facts: Any) -> str:
    return fingerprint(
        {
            "kind": job.kind,
            "schema": SCHEMA,
            "versions": {name: versions().get(name) for name in packages},
            "model": job.parsed.model.model_dump(mode="json"),
            "inputs": dict(job.inputs),
            **facts,
        }
    )


def _manifest(job: Job, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": job.kind, "schema": SCHEMA, "fingerprint": job.fingerprint, **facts}


def committed(job: Job) -> dict[str, Any] | None:
    """Return the manifest of a job whose result is there, whole and made from the same, else None."""
    try:
        found = read_manifest(job.out) if isinstance(job, TrainingJob) else read_sealed(job.out)
    except FileNotFoundError:
        return None
    except DamagedArtifact as error:
        logger.warning("%s", error)
        set_aside(local(error.address))
        return None
    if found is not None and isinstance(job, TrainingJob):
        if job.kind == "warmup" and not _whole(job.out, found):
            return None
        if job.kind == "tune" and (names := broken(local(job.out) / "adapter", {"beside": found["adapter"]})):
            logger.warning("%s is made again: %s is not what was committed", job.out, names[0])
            return None
    return found if found is not None and found.get("fingerprint") == job.fingerprint else None


def _whole(folder: str, manifest: Mapping[str, Any]) -> bool:
    """Return whether the checkpoints of a warmup are those that were committed; their files are hashed."""
    from influray.model.checkpoints import load_checkpoint

    for number, digest in enumerate(manifest["digests"], start=1):
        try:
            checkpoint = load_checkpoint(local(folder) / f"checkpoint-{number}")
            reason = "" if checkpoint.digest == digest else "its files are not those that were committed"
        except (ArtifactMismatch, OSError, ValueError) as error:
            reason = str(error)
        if reason:
            logger.warning("%s/checkpoint-%d is made again: %s", folder, number, reason)
            return False
    return True


def carry_out(job: Job, device: Any, device_map: str | None, threads: int, tell: Tell = tell_nobody) -> dict[str, Any]:
    """Carry out a job on `device` and return its manifest. With several ranks, each calls this and rank 0 commits.

    `tell` is called after every optimizer step, or batch of records, on rank 0.
    """
    from influray.runtime.process import import_large  # with Ray: a driver that has nothing to do never comes here

    trains = isinstance(job, TrainingJob) and not job.imports
    import_large("peft", *(["transformers.trainer"] if trains else []))
    import torch

    torch.set_num_threads(threads)
    try:
        if isinstance(job, EvaluationJob):
            return _evaluate(job, device, device_map, tell)
        if not trains:
            return _import(job, device_map)
        return (_train_on_targets if job.on_targets else _train)(job, device, device_map, tell)
    except DataError as error:
        raise DataError(f"{'/'.join(local(job.out).parts[-3:])}: {error}") from error


def _train(job: TrainingJob, device: Any, device_map: str | None, tell: Tell) -> dict[str, Any]:
    from influray.model.finetune import finetune
    from influray.model.loading import attach_new_adapter, load_base
    from influray.model.step_plan import StepPlan, barrier, process_group

    config, warmup, catalogue = job.parsed, job.kind == "warmup", _catalogue(job)
    examples = examples_of(
        job.parsed, job.encodes, catalogue, row_ranges(job.row_numbers, catalogue, job.catalogue), "pool"
    )
    tokens_N, settings = np.array([example.tokens for example in examples]), job.section
    rank, ranks = process_group()
    if job.tokens:
        plan = StepPlan(len(examples), settings.batch_size, settings.device_batch_size, ranks, settings.seed)
        settings = settings.model_copy(update={"steps": plan.steps_reaching(job.tokens, tokens_N)})
    model = attach_new_adapter(load_base(config.model, device, device_map), config.model.lora, job.seed)
    work = _work_folder(job)
    result = finetune(
        model,
        examples,
        settings,
        work,
        identity=job.fingerprint,
        keep="all" if warmup else "last",
        seconds_between=0.0 if warmup else TUNE_CHECKPOINT_SECONDS,
        on_step=lambda done, total, loss: tell(done, total, "steps", loss),
        report=job.report,
    )
    facts: dict[str, Any] = {
        "rows": len(examples),
        "tokens": int(tokens_N.sum()),
        "seed": job.seed,
        "steps": result.steps,
        "losses": list(result.losses),
        "ranks": ranks,
    }
    if warmup:
        facts["checkpoints"] = len(result.checkpoints)
        facts["mean_learning_rates"] = list(result.mean_learning_rates)
        facts["digests"] = [checkpoint.digest for checkpoint in result.checkpoints]
        facts |= {"imported": False, "pool_rows": job.pool_rows}
    else:
        facts["digest"] = result.checkpoints[-1].digest
    manifest = _manifest(job, facts)
    barrier()  # rank 0 moves away what the others have just read
    if rank == 0:
        if not warmup:
            remove_folder(work / "adapter")
            shutil.copytree(result.checkpoints[-1].adapter, work / "adapter")
            manifest["adapter"] = describe(work / "adapter", sorted(os.listdir(work / "adapter")))
        _commit(job, work, manifest)
    return manifest


def _import(job: TrainingJob, device_map: str | None) -> dict[str, Any]:
    work = _work_folder(job)
    manifest = _manifest(job, import_checkpoints(job.parsed, work, device_map) | {"pool_rows": job.pool_rows})
    _commit(job, work, manifest)
    return manifest


def _train_on_targets(job: TrainingJob, device: Any, device_map: str | None, tell: Tell) -> dict[str, Any]:
    from influray.model.step_plan import process_group

    catalogue, work = _catalogue(job), _work_folder(job)

    def examples(rows: np.ndarray) -> list[TokenizedExample]:
        return examples_of(job.parsed, False, catalogue, row_ranges(rows, catalogue, job.catalogue), "target")

    given = job.parsed, job.section, job.parts, examples, work, job.fingerprint
    manifest = _manifest(job, train_adapters(*given, device, device_map, tell, job.report))
    if process_group()[0] == 0:
        _commit(job, work, manifest)
    return manifest


def _evaluate(job: EvaluationJob, device: Any, device_map: str | None, tell: Tell) -> dict[str, Any]:
    from influray.evaluation.answer_loss import score_answers
    from influray.evaluation.exact_match import greedy_exact_match
    from influray.evaluation.summary import summarise
    from influray.model.loading import attach_adapter, load_base, load_tokenizer

    config, catalogue = job.parsed, _catalogue(job)
    settings = config.evaluation
    model: Any = load_base(config.model, device, device_map)
    if job.adapter is not None:
        model = attach_adapter(model, str(tuned_adapter(job.adapter)))
    examples = examples_of(config, job.encodes, catalogue, [(0, len(catalogue))], "test")
    answers = [one.answer for one in catalogue.all_parsed(range(len(catalogue)))] if settings.exact_match else []
    asked = [i for i, answer in enumerate(answers) if answer is not None]
    done = {"records": 0, "answers": 0}

    def on_done(count: int, unit: str, total: int) -> None:
        done[unit] += count
        tell(done[unit], total, unit, share=sum(done.values()) / (len(examples) + len(asked)))

    read = partial(on_done, unit="records", total=len(examples))
    losses, teacher_forced = score_answers(model, examples, settings.token_budget, read)
    exact: list[bool | None] = [None] * len(examples)
    if settings.exact_match:
        found = greedy_exact_match(
            model,
            load_tokenizer(config.model),
            [examples[i] for i in asked],
            [answers[i] or "" for i in asked],
            max_new_tokens=settings.max_new_tokens,
            token_budget=settings.token_budget,
            on_done=partial(on_done, unit="answers", total=len(asked)),
        )
        for i, hit in zip(asked, found.tolist(), strict=True):
            exact[i] = hit
    manifest = _manifest(job, summarise(catalogue.groups, losses, teacher_forced, exact))
    write_sealed(job.out, manifest)
    return manifest


def tuned_adapter(folder: str) -> Path:
    """Return the folder of a tuned adapter whose files are what was committed. Raises ArtifactMismatch."""
    adapter = present_folder(folder)
    for one in require_manifest(adapter.parent, "tune")["adapter"]:
        check_file(adapter / one["file"], one["sha256"])
    return adapter


def _catalogue(job: Job) -> Catalogue:
    from influray.data.catalogue import Catalogue

    return Catalogue(job.catalogue)


def _work_folder(job: TrainingJob) -> Path:
    out = local(job.out)
    return out.with_name(f".{out.name}.{job.fingerprint[:16]}.work")


def _commit(job: TrainingJob, work: Path, manifest: Mapping[str, Any]) -> None:
    write_manifest(work, manifest)
    if job.kind == "tune":
        for path in children(work, "checkpoint-*"):
            remove_folder(path)
    out = local(job.out)
    replace_folder(work, out)
    for path in children(out.parent, f".{out.name}.*.work"):  # of configs that are no more
        remove_folder(path)


def working_in(folder: str) -> contextlib.AbstractContextManager[None]:
    """Work in the driver's folder where this machine has it, so that relative paths mean the same."""
    return contextlib.chdir(folder) if os.path.isdir(folder) else contextlib.nullcontext()
