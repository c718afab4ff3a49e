"""What `run` would do of each step of a config, from what run.json says that they were made from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from influray.config import Config
from influray.protocols import ArtifactMismatch
from influray.steps import STEPS, Step
from influray.steps.step import Recorded
from influray.store.artifact import MANIFEST, fingerprint, read_sealed, require_manifest
from influray.store.checks import damaged
from influray.store.mirror import present
from influray.store.run_directory import RunDirectory


def basis(step: Step, config: Config, recorded: Recorded) -> dict[str, str]:
    """Return what a step is made from, as run.json keeps it: key of the config, or step before it -> its digest."""
    plain: dict[str, Any] = config.model_dump(mode="json")
    before = [one.name for one in STEPS[: STEPS.index(step)]] if step in STEPS else []  # none of the index
    return {key: fingerprint(_part(plain, key)) for key in step.made_from} | {
        name: recorded[name].get("fingerprint", "") for name in before if name in recorded
    }


def step_states(config: Config, directory: RunDirectory) -> dict[str, str]:
    """Return what `run` would do of each step: "done", "to do", or "to do: " and why what is there does not serve.

    Source files are not read: one that was written since the data step counts as changed. Of what was committed the
    manifests are read, and files that are missing or of another size count as lost.

    Raises:
        DamagedArtifact: run.json or config.yaml is damaged, or gone while there is a catalogue.
    """
    directory.require_made()
    directory.check_config()
    recorded = directory.read()["steps"]
    states: dict[str, str] = {}
    stale = ""  # why this step and all after it are made again
    for step in STEPS:
        status = recorded.get(step.name, {}).get("status", "")
        if not step.wanted(config):
            states[step.name] = "not asked for"
        elif status != "done":
            stale = stale or (_changed(step, config, recorded) if status else "")
            states[step.name] = f"to do: {status}" if status else "to do"
        else:
            stale = stale or _changed(step, config, recorded) or step.stale(config, directory, recorded)
            stale = stale or _lost(directory, recorded[step.name].get("artifacts", ()))
            states[step.name] = f"to do: {stale}" if stale else "done"
    return states


def _changed(step: Step, config: Config, recorded: Recorded) -> str:
    known = recorded[step.name].get("made_from", {})
    changed = [key for key, digest in basis(step, config, recorded).items() if known.get(key) != digest]
    return f"{changed[0]} has changed" if changed else ""


def _part(plain: dict[str, Any], key: str) -> Any:
    value: Any = plain
    for name in key.split("."):
        value = value[name]
    if key == "data":  # roles are what selections are made from, and no catalogue
        targets = {task: {k: v for k, v in one.items() if k != "role"} for task, one in value["targets"].items()}
        value = {**value, "targets": targets}
    return value


def _lost(directory: RunDirectory, artifacts: Sequence[str]) -> str:
    """Return why an artifact of a step is not whole, "" where all are, by a look at manifests and sizes."""
    for name in artifacts:
        path = directory.path / name
        try:
            if path.name == MANIFEST:
                found = require_manifest(path.parent, "run")
                names = damaged(path.parent, found) or damaged(
                    path.parent / "adapter", {"beside": found.get("adapter", ())}
                )
                if names:
                    return f"{path.parent.relative_to(directory.path)}/{names[0]} is missing or torn"
            elif path.suffix == ".json":
                lost = [file for file in read_sealed(path).get("files", ()) if not (path.parent / file).is_file()]
                if lost:
                    return f"{path.parent.relative_to(directory.path)}/{lost[0]} is missing"
            elif not present(path).is_file():
                return f"{name} is missing"
        except (ArtifactMismatch, FileNotFoundError) as error:
            return f"{name} is missing" if not present(path).exists() else str(error)
    return ""
