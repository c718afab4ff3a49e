"""The scorers that are judged: what their names stand for, and their matrices, made beside the run's own.

RUN/validate/scorers/NAME/attribution, and for those that need other features than the run's, datastores under
RUN/validate/features. The run's own artifacts are read and never written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pydantic import ValidationError

from influray.config import AttributionConfig, Config, FeaturesConfig
from influray.config_messages import near, readable
from influray.config_validate import OWN, JudgedConfig
from influray.protocols import ArtifactMismatch, ConfigError, Stores
from influray.registry import WARMED, featurizer_traits
from influray.scorers.options import made_stores, make_scorer
from influray.steps.context import StepContext
from influray.steps.featurize import featurize
from influray.steps.score import score
from influray.steps.subject import require_unfitted
from influray.store.artifact import fingerprint, require_manifest
from influray.store.attribution import Attribution
from influray.store.run_directory import FEATURES, RunDirectory

RANDOM = "random"


@dataclass(frozen=True)
class Judged:
    """A scorer by its name; `features` are the keys of the section that are others than the run's."""

    name: str
    scorer: str
    options: Mapping[str, Any] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """What it is, in a line."""
        options = [f"{key} {value}" for key, value in self.options.items()]
        features = [
            f"{value}" if key == "featurizer" else f"{key} {_plain(value)}" for key, value in self.features.items()
        ]
        text = ", ".join([self.scorer, *options])
        return f"{text} on {', '.join(features)} features" if features else text


def _plain(value: Any) -> str:
    return " ".join(f"{key} {one}" for key, one in value.items()) if isinstance(value, Mapping) else f"{value}"


PLAIN = {"featurizer": "gradient", "direction": "sgd"}
# Name -> scorer, and the features that carry it where the run's own do not.
KNOWN: dict[str, Judged] = {
    one.name: one
    for one in (
        Judged("cosine", "inner_product", {"similarity": "cosine"}, {"featurizer": "gradient"}),
        Judged("dot", "inner_product", {"similarity": "dot"}, {"featurizer": "gradient"}),
        Judged("whitened", "whitened", {}, {"featurizer": "gradient"}),
        Judged("gram", "gram", {}, PLAIN),
        Judged("datainf", "datainf", {}, {**PLAIN, "blocks": "module"}),
        Judged("shampoo", "shampoo", {}, {**PLAIN, "blocks": "module", "projector": {"name": "factored"}}),
        Judged("grand", "grand", {}, {"featurizer": "gradient"}),
        Judged("vog", "vog", {}, {**PLAIN, "projector": {"matrices": "one"}}),
        Judged("loss", "loss", {}, {"featurizer": "loss"}),
        Judged("el2n", "el2n", {}, {"featurizer": "loss"}),
        Judged("representation", "inner_product", {"similarity": "cosine"}, {"featurizer": "representation"}),
        Judged("bm25", "bm25", {}, {"featurizer": "ngram"}),
        Judged("dsir", "dsir", {}, {"featurizer": "ngram"}),
        Judged("length", "length"),
        Judged(RANDOM, RANDOM),
    )
}
ALWAYS = ("representation", "bm25", "length", RANDOM)  # of `auto`, whatever the datastores


def own(config: Config) -> Judged:
    """Return the run's own scorer."""
    settings = config.attribution
    return Judged(OWN, settings.scorer, dict(settings.options))


def judged_scorers(config: Config, stores: Stores) -> list[Judged]:
    """Return the scorers that a config wants judged, the run's own first; `stores` are its datastores.

    Raises:
        ConfigError: no scorer is called so, or keys of its features or options are wrong.
    """
    wanted = config.validation.scorers
    if wanted == "auto":
        carried = [name for name in KNOWN if name not in ALWAYS and _carries(stores, KNOWN[name])]
        found = [_fitted(KNOWN[name], stores) for name in (*carried, *ALWAYS)]
        return [own(config), *(one for one in found if not _is_own(config, one))]
    found = [own(config)]
    for one in wanted:
        if one != OWN:
            found.append(_named(config, one, stores))
    return found


def scorer_called(found: Sequence[Judged], name: str, key: str) -> Judged:
    """Return the scorer of a name among those that are judged. Raises ConfigError naming `key` where there is none."""
    for one in found:
        if one.name == name:
            return one
    names = [one.name for one in found]
    raise ConfigError(f"{key}: {name!r} is none of validate.scorers{near(name, names)} ({', '.join(names)})")


def stores_of(directory: RunDirectory, config: Config) -> Stores:
    """Return what the run's datastores are, as far as scorers ask. Raises ArtifactMismatch where there are none."""
    matrix = require_manifest(directory.attribution, "score")
    weights = matrix["weights"]
    made = [require_manifest(directory.features("pool", k), "featurize") for k in range(1, len(weights) + 1)]
    return made_stores(made, weights)


def matrix_of(context: StepContext, one: Judged) -> Attribution:
    """Return the matrix of a scorer; where it is not the run's own, what of it is missing is made.

    Raises:
        ConfigError, DataError, ArtifactMismatch: as the steps featurize and score.
    """
    if one.name == OWN:
        return Attribution(context.directory.attribution)
    config = config_of(context.config, one)
    place = FEATURES
    if one.features:
        digest = fingerprint(config.features.model_dump(mode="json"))
        place = f"validate/features/{config.features.featurizer.rpartition(':')[2]}-{digest[:12]}"
    directory = RunDirectory(context.directory.address, place, f"validate/scorers/{one.name}")
    beside = context.beside(config, directory)
    try:
        if one.features:
            featurize(beside)
        score(beside)
    except (ConfigError, ArtifactMismatch) as error:
        raise type(error)(f"validate.scorers: {one.name}: {error}") from error
    return Attribution(directory.attribution)


def config_of(config: Config, one: Judged) -> Config:
    """Return the run's config with the scorer in the place of its own.

    Raises:
        ConfigError: keys are wrong, or as `require_unfitted`.
    """
    features = config.features.model_dump(mode="json")
    if one.features.get("featurizer", features["featurizer"]) != features["featurizer"]:
        features["options"] = {}  # those of another featurizer
    given = dict(one.features)
    if isinstance(changes := given.get("projector"), Mapping):
        before = features["projector"]
        given["projector"] = {**before, **({"options": {}} if changes.get("name", "") else {}), **changes}
    try:
        made = FeaturesConfig(**{**features, **given})
    except ValidationError as error:
        raise ConfigError(readable(error, f"validate.scorers.{one.name}.features", FeaturesConfig)) from None
    weights = config.attribution.weights
    if featurizer_traits(made.featurizer).reads not in WARMED and not isinstance(weights, str):
        weights = "uniform"  # there is one store
    attribution = AttributionConfig(scorer=one.scorer, weights=weights, options=dict(one.options))
    changed = config.model_copy(update={"features": made, "attribution": attribution})
    try:
        require_unfitted(changed)
    except ConfigError as error:
        raise ConfigError(f"validate.scorers: {one.name}: {error}") from error
    return changed


def columns_of(matrix: Attribution, tasks: Sequence[str], rows: np.ndarray | None = None) -> np.ndarray:
    """Return the column of the matrix that speaks for each target, int64 [T], -1 where none does.

    That is the target's own; else the one of its task; else the only one there is.
    """
    by_row = {int(row): j for j, row in enumerate(matrix.target_rows.tolist()) if row >= 0}
    by_task = {task: j for j, task in enumerate(matrix.groups) if matrix.target_rows[j] < 0}
    single = 0 if len(matrix.groups) == 1 else -1
    wanted = range(len(tasks)) if rows is None else rows.tolist()
    return np.array([by_row.get(row, by_task.get(task, single)) for row, task in zip(wanted, tasks, strict=True)])


def _named(config: Config, given: str | JudgedConfig, stores: Stores) -> Judged:
    if isinstance(given, JudgedConfig):
        if given.name in (OWN, *KNOWN):
            raise ConfigError(
                f"validate.scorers: the name {given.name!r} is kept for a scorer of its own; take another"
            )
        one = Judged(given.name, given.scorer, given.options, given.features)
    elif given in KNOWN:
        one = _fitted(KNOWN[given], stores)
    else:
        names = (OWN, *KNOWN)
        raise ConfigError(
            f"validate.scorers: no scorer is called {given!r}{near(given, names)} (known: {', '.join(names)}; or a "
            "section with name, scorer, options and features)"
        )
    config_of(config, one)
    return one


def _fitted(one: Judged, stores: Stores) -> Judged:
    """Return the scorer on the run's own features where they carry it."""
    return Judged(one.name, one.scorer, one.options) if _carries(stores, one) else one


def _carries(stores: Stores, one: Judged) -> bool:
    if one.scorer == RANDOM:
        return True
    if one.name in ("cosine", "dot", "whitened", "grand") and stores.featurizer != "gradient":
        return False
    if one.name == "representation" and stores.featurizer != "representation":
        return False
    try:
        make_scorer(one.scorer, stores, one.options)
    except ArtifactMismatch:
        return False
    return True


def _is_own(config: Config, one: Judged) -> bool:
    """Return whether this is the run's own scorer by another name."""
    mine = own(config)
    options = dict(mine.options)
    if mine.scorer == "inner_product":
        options.setdefault("similarity", "cosine")
    return not one.features and one.scorer == mine.scorer and dict(one.options) == options
