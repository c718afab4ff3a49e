"""What one retraining of `influray validate` is, and how a process runs many of them on one base.

A retraining is a tune on rows of its own that leaves no adapter but the answer loss of every target and test record.
The base is loaded once; each retraining starts from the adapter that its seed makes, put back in place: the trained
adapter is that of a tune, bit for bit.
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from influray.config import Config, parse_config
from influray.config_model import FinetuneConfig
from influray.job_status import Tell, tell_nobody
from influray.protocols import DamagedArtifact, DataError, TokenizedExample
from influray.store.artifact import SCHEMA, fingerprint, read_sealed, write_sealed
from influray.store.checks import set_aside
from influray.store.mirror import address_of, local
from influray.store.run_directory import RunDirectory

logger = logging.getLogger(__name__)

SPLITS = ("target", "test")  # whose records are judged, beside what an experiment brings


@dataclass(frozen=True)
class Retraining:
    """One training: catalogue rows, ascending, in the order that `section.seed` gives them.

    The rows `without` keep their places in the steps and weigh nothing.
    """

    rows: tuple[int, ...]
    section: FinetuneConfig
    without: tuple[int, ...] = ()


@dataclass(frozen=True)
class Bench:
    """What all retrainings of a run have in common.

    Where the run lies, its config as JSON, digests of what is read, and the catalogues of the records that are judged.
    """

    run_dir: str
    config: str
    inputs: tuple[tuple[str, str], ...]
    judged: tuple[tuple[str, str], ...]  # name, address of a catalogue

    @cached_property
    def parsed(self) -> Config:
        return parse_config(json.loads(self.config))

    @cached_property
    def common(self) -> dict[str, Any]:
        """What every result depends on beside its retraining."""
        return {
            "kind": "retraining",
            "schema": SCHEMA,
            "model": self.parsed.model.model_dump(mode="json"),
            "token_budget": self.parsed.evaluation.token_budget,
            "inputs": list(self.inputs),
        }

    def fingerprint(self, one: Retraining) -> str:
        """What a result depends on, which names its file."""
        facts = {"rows": one.rows, "without": one.without, "section": one.section.model_dump(mode="json")}
        return fingerprint({**self.common, **facts})

    def place(self, one: Retraining) -> str:
        """The file of a result."""
        return f"{self.run_dir}/validate/retrainings/{self.fingerprint(one)}.json"

    def committed(self, one: Retraining) -> dict[str, Any] | None:
        """Return the result of a retraining that is there and whole; a damaged one is set aside."""
        try:
            found = read_sealed(self.place(one))
        except FileNotFoundError:
            return None
        except DamagedArtifact as error:
            logger.warning("%s", error)
            set_aside(local(error.address))
            return None
        return found if found.get("fingerprint") == self.fingerprint(one) else None


class Retrainer:
    """A base model in this process, and the records that are judged."""

    def __init__(self, bench: Bench, device: str, threads: int) -> None:
        from influray.runtime.process import import_large

        import_large("peft", "transformers.trainer")
        import torch

        from influray.data.catalogue import Catalogue
        from influray.model.loading import load_base

        torch.set_num_threads(threads)
        self._bench, self._config = bench, bench.parsed
        directory = RunDirectory(bench.run_dir)
        self._pool = Catalogue(directory.data("pool"))
        judged = {name: Catalogue(folder) for name, folder in bench.judged}
        self._judged = {name: found.tokenized(0, len(found)) for name, found in judged.items()}
        self._model: Any = load_base(self._config.model, device, self._config.resources.device_map)
        self._fresh: dict[int, list[Any]] = {}  # seed -> the weights of its new adapter, on the CPU

    def carry_out(self, one: Retraining, tell: Tell = tell_nobody) -> dict[str, Any]:
        """Train, judge, commit, and return the result; what is committed is not repeated.

        `tell` is called after every optimizer step.

        Raises:
            DataError: the loss is not finite, or a row cannot be trained on.
        """
        found = self._bench.committed(one)
        if found is not None:
            return found
        model, steps = self.train(one, tell)
        result = {
            "kind": "retraining",
            "fingerprint": self._bench.fingerprint(one),
            "rows": len(one.rows) - len(one.without),
            "seed": one.section.seed,
            "steps": steps,
            "losses": {split: self._losses(model, examples) for split, examples in self._judged.items()},
        }
        write_sealed(self._bench.place(one), result)
        return result

    def train(self, one: Retraining, tell: Tell = tell_nobody) -> tuple[Any, int]:
        """Return the model with the trained adapter, which the next call changes, and the steps it took."""
        from influray.model.finetune import finetune

        model, examples = self._new_adapter(one.section.seed), list(self._examples(one.rows))
        left_out = frozenset(np.searchsorted(np.array(one.rows), np.array(one.without, np.int64)).tolist())
        with tempfile.TemporaryDirectory(prefix="influray-") as folder:
            try:
                done = finetune(
                    model,
                    examples,
                    one.section,
                    folder,
                    keep="none",
                    resume=False,
                    without=left_out,
                    on_step=lambda done, total, loss: tell(done, total, "steps", loss),
                )
            except DataError as error:
                raise DataError(
                    f"validate: a retraining on {len(one.rows)} rows with seed {one.section.seed}: {error}"
                ) from error
        return model, done.steps

    def _new_adapter(self, seed: int) -> Any:
        """Return the model with the adapter that a tune of this seed begins with."""
        import torch
        from peft import PeftModel

        from influray.model.loading import attach_new_adapter

        if seed not in self._fresh:
            base = self._model.unload() if isinstance(self._model, PeftModel) else self._model
            self._model = attach_new_adapter(base, self._config.model.lora, seed)
            self._fresh[seed] = [weight.detach().cpu().clone() for weight in self._trained()]
            return self._model
        with torch.no_grad():
            for weight, fresh in zip(self._trained(), self._fresh[seed], strict=True):
                weight.copy_(fresh)
                weight.grad = None
        return self._model

    def _trained(self) -> list[Any]:
        return [weight for weight in self._model.parameters() if weight.requires_grad]

    def _examples(self, rows: Sequence[int]) -> Iterator[TokenizedExample]:
        row_n = np.array(rows, np.int64)
        for stretch in np.split(row_n, np.flatnonzero(np.diff(row_n) != 1) + 1):
            yield from self._pool.tokenized(int(stretch[0]), int(stretch[-1]) + 1)

    def _losses(self, model: Any, examples: Sequence[TokenizedExample]) -> list[float]:
        from influray.evaluation.answer_loss import score_answers

        losses, _ = score_answers(model, examples, self._config.evaluation.token_budget)
        return losses.tolist()


def make_bench(
    directory: RunDirectory, config: Config, inputs: Mapping[str, str], beside: Mapping[str, Path] | None = None
) -> Bench:
    """Return the bench of a run; `inputs` are digests: of the base model, versions and catalogues are added here.

    `beside` are catalogues of more records that are judged, by name.
    """
    from influray.runtime.training_worker import NUMERIC
    from influray.store.artifact import require_manifest
    from influray.store.run_directory import versions

    judged = {split: directory.data(split) for split in SPLITS if _there(directory, split)} | dict(beside or {})
    found = {name: versions().get(name, "") for name in NUMERIC} | dict(inputs)
    for split, folder in {"pool": directory.data("pool"), **judged}.items():
        found[split] = require_manifest(folder, "run")["digest"]
    places = tuple((name, address_of(folder)) for name, folder in judged.items())
    return Bench(directory.address, json.dumps(config.model_dump(mode="json")), tuple(sorted(found.items())), places)


def _there(directory: RunDirectory, split: str) -> bool:
    from influray.store.artifact import read_manifest

    manifest = read_manifest(directory.data(split))
    return manifest is not None and bool(manifest["rows"])


def token_of(bench: Bench) -> str:
    """Return what names a bench among the things that a process keeps for its next task."""
    return fingerprint(asdict(bench))
