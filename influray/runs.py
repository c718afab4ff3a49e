"""A run: a run directory with its config, and what can be asked of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from influray.config import Config, load_config, parse_config
from influray.config_messages import near
from influray.config_yaml import set_dotted
from influray.plugins import permit, trusting
from influray.protocols import ArtifactMismatch, ConfigError, Selection
from influray.registry import outside_code
from influray.store.mirror import present
from influray.store.run_directory import RunDirectory
from influray.store.uri import is_uri, parse_uri

if TYPE_CHECKING:
    from influray.ask.answers import QueryAnswer
    from influray.ask.query import QueryEngine
    from influray.ask.shots import Shots
    from influray.report.export import Exported
    from influray.store.attribution import Attribution
    from influray.store.datastore import Datastore


@dataclass(frozen=True)
class Run:
    """A run directory and its config."""

    directory: RunDirectory
    config: Config

    def __repr__(self) -> str:
        names = ", ".join(selector.name for selector in self.config.selectors)
        return f"<Run {self.directory.address}: {names}>"

    def attribution(self) -> Attribution:
        from influray.store.attribution import Attribution

        return Attribution(self.directory.attribution)

    def datastore(self, split: str, checkpoint: int = 1) -> Datastore:
        from influray.store.datastore import Datastore

        return Datastore(self.directory.features(split, checkpoint))

    def selection(self, name: str) -> Selection:
        """Return a committed selection by its name in the config.

        Raises:
            ConfigError: the config has none of that name; it names those that there are.
            ArtifactMismatch: it has not been made yet.
        """
        from influray.store.artifact import read_manifest
        from influray.store.selection import read_selection

        known = [selector.name for selector in self.config.selectors]
        if name not in known and read_manifest(self.directory.selection(name)) is None:
            raise ConfigError(
                f"selection: {self.directory.address} has none called {name!r}{near(name, known)} "
                f"(known: {', '.join(known)})"
            )
        return read_selection(self.directory.selection(name))

    def export(
        self,
        to: str | Path,
        name: str | None = None,
        *,
        format: str = "messages",
        parquet: bool = False,
        beside: Sequence[str] = (),
        skip: bool = False,
    ) -> Exported:
        """Write a selection, by default the only one, as a file that trainers read, with their settings beside it.

        Raises:
            ConfigError, DataError, ArtifactMismatch: as `influray.report.export.export`.
        """
        from influray.report.export import export

        names = [selector.name for selector in self.config.selectors]
        if name is None and len(names) > 1:
            raise ConfigError(f"export: {self.directory.address} has several selections; name one: {', '.join(names)}")
        wanted = names[0] if name is None else name
        return export(self.directory, self.config, wanted, to, format, parquet=parquet, beside=tuple(beside), skip=skip)

    def evaluation(self, name: str, seed: int = 0) -> dict[str, Any]:
        """Return the evaluation of a tuned selection, of "full", or of the untouched "base" (seed 0)."""
        from influray.store.artifact import read_sealed

        path = self.directory.evaluation(name, seed)
        try:
            return read_sealed(path)
        except FileNotFoundError:
            raise ArtifactMismatch(f"{path}: not there; run `influray evaluate` first") from None

    @cached_property
    def engine(self) -> QueryEngine:
        """What answers queries on this run; it keeps the model once a question has needed it."""
        from influray.ask.query import QueryEngine

        return QueryEngine(self.directory, self.config)

    def query(
        self,
        prompt: str = "",
        answer: str = "",
        k: int = 20,
        *,
        system: str = "",
        messages: bytes = b"",
        like: str = "",
        tokens: bool = False,
    ) -> QueryAnswer:
        """Return the k pool rows that would help the answer to a prompt most, and at most k that would harm it most.

        Args:
            prompt: what is asked; with the next two an exchange, rendered as a target would be.
            answer: the answer that is wanted.
            k: how many rows at each end.
            system: a system turn before it.
            messages: a record as JSON in place of the three.
            like: the id of a target or of a pool row whose stored vector asks, in place of text.
            tokens: whether to split the influence over the tokens of the answer.

        Raises:
            ConfigError, DataError, ArtifactMismatch: as `QueryEngine.ask`.
        """
        from influray.ask.query import Asked
        from influray.data.question import Question

        text = prompt or answer or system or messages
        question = Question(prompt, answer, system, messages) if text or not like else None
        return self.engine.ask(Asked(question, like, k, tokens))

    def shots(self, prompt: str = "", answer: str = "", k: int = 8, **options: Any) -> Shots:
        """Return k rows of the pool as demonstrations for a question, and the prompt of them.

        Args:
            prompt: the question; `answer` the one that is wanted, which chooses, or `task`, whose targets choose.
            answer: see there.
            k: how many, least influence first.
            options: system, like, task, method (influence, coverage, dpp), selection, max_tokens, reverse, candidates,
                diversity, as in `influray.ask.shots.ShotsAsked`.

        Raises:
            ConfigError, DataError, ArtifactMismatch: as `influray.ask.shots.choose_shots`.
        """
        from influray.ask.shots import ShotsAsked, choose_shots

        return choose_shots(self.engine, ShotsAsked(prompt, answer, k=k, **options))


def located(run_dir: str | Path) -> Run:
    """Return the run that lies in a folder or at a URI, to be read: nothing that its config names is admitted.

    Raises:
        ConfigError: there is no run.
        DamagedArtifact: its config is not the one that it was run with.
    """
    directory = RunDirectory(run_dir)
    path = present(directory.config_path)
    if not path.is_file():
        raise ConfigError(f"{run_dir}: no run lies here (no config.yaml); name the folder of one, such as runs/demo")
    directory.check_config()
    return Run(directory, load_config(path, {"run_dir": directory.address}))


def open_run(run_dir: str | Path) -> Run:
    """Return the run that lies in a folder or at a URI, with the config it was run with.

    It may come from elsewhere: plug-ins and model code that its config names run only inside `influray.allow_plugins()`
    (`--allow-plugins`).

    Raises:
        ConfigError: there is no run, or its config names a plug-in, or a model that brings code, and may not.
    """
    this = located(run_dir)
    admit(this.config, this.directory.config_path)
    return this


def resolve(
    config: str | Path | Config | Mapping[str, Any],
    overrides: Mapping[str, Any] | None = None,
    run_dir: str | Path | None = None,
) -> Run:
    """Return the run that a config, overrides and run directory stand for; nothing is written.

    What the config names is admitted as `admit` says. Its `run_dir` is where the run lies, also where `run_dir` chose
    another place than the file.

    Raises:
        ConfigError: as `load_config`; or the config of a run directory names a plug-in and may not.
    """
    overrides = overrides or {}
    if isinstance(config, str | Path):
        resolved = load_config(config, overrides)
    elif isinstance(config, Config):
        resolved = config
        if overrides:
            # Without what was left out: a default that nobody gave stands back behind imported adapters.
            resolved = load_config_tree(config.model_dump(mode="json", exclude_unset=True), overrides).made_in(
                config.run_directory
            )
    else:
        resolved = load_config_tree(copy.deepcopy(dict(config)), overrides)
    admit(resolved, resolved.run_directory, overrides)
    if is_uri(resolved.run_dir):
        parse_uri(resolved.run_dir)  # it is kept in config.yaml whatever takes its place: no secrets
    directory = RunDirectory(resolved.run_dir if run_dir is None else run_dir)
    return Run(directory, resolved.model_copy(update={"run_dir": directory.address}))


def load_config_tree(tree: dict[str, Any], overrides: Mapping[str, Any]) -> Config:
    """Return the config of a plain tree with dotted overrides."""
    for key, value in overrides.items():
        set_dotted(tree, key, value)
    return parse_config(tree)


def admit(config: Config, run_directory: Path | None, overrides: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Permit the code that a config names, or refuse it: the only way by which the names of a config are permitted.

    A user's own config (`run_directory` None) is hers, and so is what she overrides. A config that lies in a run
    directory may come from elsewhere, and names no code outside `influray.allow_plugins()`.

    Raises:
        ConfigError: the config of a run directory names a plug-in, or trusts a model's code; it names the key.
    """
    named = {
        "features.featurizer": ("featurizers", config.features.featurizer),
        "features.projector.name": ("projectors", config.features.projector.name),
        "attribution.scorer": ("scorers", config.attribution.scorer),
        **{f"selectors.{i}.method": ("selectors", s.method) for i, s in enumerate(config.selectors)},
    }
    if (cheap := config.cascade) is not None:
        named["cascade.features.featurizer"] = ("featurizers", cheap.features.featurizer)
        named["cascade.features.projector.name"] = ("projectors", cheap.features.projector.name)
        named["cascade.attribution.scorer"] = ("scorers", cheap.attribution.scorer)
        named["cascade.selector.method"] = ("selectors", cheap.selector.method)
    judged = () if config.validation.scorers == "auto" else config.validation.scorers
    for i, one in enumerate(judged):
        if not isinstance(one, str):
            named[f"validate.scorers.{i}.scorer"] = ("scorers", one.scorer)
            if "featurizer" in one.features:
                named[f"validate.scorers.{i}.features.featurizer"] = ("featurizers", str(one.features["featurizer"]))
    outside = {key: (name, target) for key, (seam, name) in named.items() if (target := outside_code(seam, name))}
    if run_directory is not None and not trusting():
        advice = "add --allow-plugins (in Python: influray.allow_plugins()) if you trust where it comes from"
        for key, (name, _) in outside.items():
            if not _overridden(key, overrides):
                raise ConfigError(
                    f"{run_directory}: {key} names the plug-in {name!r}, and a run directory may not name code to "
                    f"import; {advice}"
                )
        for key, model in config.models:
            if model.trust_remote_code and not _overridden(f"{key}.trust_remote_code", overrides):
                raise ConfigError(f"{run_directory}: {key}.trust_remote_code runs code of {model.base!r}; {advice}")
    permit(target for _, target in outside.values())


def _overridden(key: str, overrides: Mapping[str, Any]) -> bool:
    return any(key == given or key.startswith(f"{given}.") for given in overrides)
