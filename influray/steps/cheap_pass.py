"""What the cheap pass of a cascade is: its config, its place, and what is kept of it.

It has the model, data and resources of the run, its own features, scorer and selector, and ends with a selection whose
rows are the pool of the run.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from influray.config import Config, SelectorConfig
from influray.protocols import ArtifactMismatch, ConfigError
from influray.steps.subject import Subject, settle_checkpoints
from influray.store.artifact import require_manifest
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_selection

PASSED = "passed"  # the selection of the cheap pass
LAST = "select"  # its last step
OWN = ("features", "warmup", "attribution")  # sections of the cheap pass that are keys of `cascade`


def cheap_config(config: Config, place: str) -> Config:
    """Return the config of the cheap pass of a run, which lies at `place`.

    Ids that a selector of the run includes pass whatever their score. Tasks to protect and to avoid limit what is
    chosen, not what may be: the cheap pass has none.

    Raises:
        ConfigError: a file of ids cannot be read.
    """
    from influray.selectors.api import read_ids

    section = config.cascade
    assert section is not None
    asked = [section.selector.constraints, *(one.constraints for one in config.selectors)]
    ids = [read_ids("constraints.include", one.include, Path(config.data.root)) for one in asked]
    include = tuple(dict.fromkeys(one for given in ids for one in given))
    passed = {
        **passing(config),
        "seed": section.selector.seed,
        "constraints": section.selector.constraints.model_copy(update={"include": include}),
    }
    sought = {task: one for task, one in config.data.targets.items() if task not in config.data.roles}
    targets = {task: one.model_copy(update={"test": ()}) for task, one in sought.items()}
    return config.model_copy(
        update={
            "run_dir": place,
            "data": config.data.model_copy(update={"targets": targets}),
            "cascade": None,
            "features": section.features,
            "warmup": section.warmup or config.warmup,
            "attribution": section.attribution,
            "selectors": (SelectorConfig(name=PASSED, budget=section.share, **passed),),
            "tune": None,
            "validation": Config.model_fields["validation"].default,
        }
    )


def passing(config: Config) -> dict[str, Any]:
    """Return method and options of the selection that says who passes."""
    assert config.cascade is not None
    asked, first = config.cascade.selector, config.selectors[0]
    if asked.method != "auto":
        return {"method": asked.method, "options": asked.options}
    return {"method": first.method, "options": {**first.options, **asked.options}}


def cheap_run(config: Config, directory: RunDirectory) -> tuple[Config, RunDirectory]:
    """Return the cheap pass of a run that lies in `directory`. Raises as `cheap_config` and `settle_imported`."""
    place = directory.cascade
    return settle_checkpoints(cheap_config(config, place.address)), place


def subject_of(config: Config, directory: RunDirectory) -> Subject:
    """Return a cheap pass as the checks before it see it."""
    from influray.steps import steps_until

    return Subject(config, directory, tuple(step.name for step in steps_until(LAST, config)), LAST)


def description(config: Config) -> dict[str, Any]:
    """Return what the cheap pass of a config is, as manifests and reports tell it."""
    section = config.cascade
    assert section is not None
    by = [section.features.featurizer, section.attribution.scorer, passing(config)["method"]]
    return {"share": section.share, "by": by}


def passed_rows(directory: RunDirectory) -> tuple[np.ndarray, int]:
    """Return the rows of the whole pool that passed, int64 ascending, and how many were judged.

    `directory` is that of the cheap pass. Raises ArtifactMismatch where it was not made.
    """
    rows = read_selection(directory.selection(PASSED)).rows
    return np.sort(rows), int(require_manifest(directory.attribution, "run")["rows"])


@contextlib.contextmanager
def in_words_of_the_run(config: Config) -> Iterator[None]:
    """Name in an error of the cheap pass the keys that the run's config has for it."""
    own = [name for name in OWN if name != "warmup" or (config.cascade and config.cascade.warmup)]
    try:
        yield
    except (ConfigError, ArtifactMismatch) as error:
        text = re.sub(r"^selectors\.0\.budget", "cascade.share", str(error))
        text = re.sub(r"^selectors\.0", "cascade.selector", text)
        text = re.sub(rf"^({'|'.join(own)})(?=[.:])", r"cascade.\1", text)
        if text == str(error):
            raise
        raise type(error)(text) from error
