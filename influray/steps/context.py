"""What the steps of a run share, and what each leaves in run.json."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.config import Config
from influray.protocols import Reads
from influray.registry import WARMED, featurizer_reads
from influray.store.artifact import SCHEMA, fingerprint, require_manifest
from influray.store.run_directory import RunDirectory, versions

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue
    from influray.progress import Progress


@dataclass(frozen=True)
class StepResult:
    """What a step leaves in run.json. `artifacts` are the files, within the run directory, that make its work count."""

    fingerprint: str
    skipped: bool
    facts: Mapping[str, Any] = field(default_factory=dict)
    artifacts: Sequence[str] = ()


class StepContext:
    """What the steps of one run share; the expensive parts come into being when first asked for."""

    def __init__(
        self,
        config: Config,
        directory: RunDirectory,
        until: str,
        progress: Progress,
        stack: contextlib.ExitStack,
        address: str | None,
    ) -> None:
        self.config = config
        self.until = until  # what the user asked for
        self.directory = directory
        self.progress = progress
        self._stack = stack
        self._address = address
        self.within = ""  # goes before the names of steps where progress is told
        self._first: StepContext | None = None  # whose cluster this one shares

    def beside(self, config: Config, directory: RunDirectory, until: str | None = None) -> StepContext:
        """Return a context of another config and other places in the run directory, on the same cluster."""
        other = StepContext(config, directory, until or self.until, self.progress, self._stack, self._address)
        other._first = self._first or self
        return other

    @property
    def cascade(self) -> RunDirectory:
        """Where the cheap pass lies: a variant of a run in a place of its own has that of the run."""
        return (self._first or self).directory.cascade

    @property
    def whole_pool(self) -> Path:
        """The catalogue of the pool with the rows that did not pass a cascade."""
        return (self.directory if self.config.cascade is None else self.cascade).data("pool")

    @cached_property
    def cluster(self) -> Any:
        """The Ray cluster, connected at first use and left when the run ends."""
        if self._first is not None:
            return self._first.cluster
        from influray.runtime.cluster import connect

        return self._stack.enter_context(connect(self.config.resources, self._address))

    @cached_property
    def resources(self) -> Any:
        from influray.runtime.cluster import resolve_resources

        return resolve_resources(self.config.resources, self.cluster)

    @cached_property
    def tokenizer(self) -> Any:
        from influray.model.loading import load_tokenizer

        return load_tokenizer(self.config.model)

    @cached_property
    def model_digest(self) -> str:
        """The content of the base model: weights, config and code that runs."""
        from influray.model.loading import model_digest

        return model_digest(self.config.model)

    @cached_property
    def tuned(self) -> StepContext:
        """This context with the model that is tuned in the place of the one that selects."""
        config = self.config.tuned
        return self if config is self.config else self.beside(config, self.directory)

    def catalogue(self, split: str) -> Catalogue:
        from influray.data.catalogue import Catalogue

        return Catalogue(self.directory.data(split))

    @cached_property
    def reads(self) -> Reads:
        """What the features are made from (see protocols.Featurizer)."""
        return featurizer_reads(self.config.features.featurizer)

    @property
    def checkpoints(self) -> int:
        """How many datastores each split has: one where no warmup is read."""
        if self.reads not in WARMED:
            return 1
        return int(require_manifest(self.directory.warmup, "warmup")["checkpoints"])

    def identity(self, **parts: Any) -> str:
        """Return the fingerprint of a step's parts, with what its bytes always depend on."""
        numeric = {name: versions().get(name) for name in ("torch", "transformers")}
        return fingerprint({"schema": SCHEMA, "versions": numeric, **parts})
