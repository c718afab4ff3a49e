"""select: every selector of the config whose selection is not there yet."""

from __future__ import annotations

import logging
from pathlib import Path

from influray.config import Config
from influray.steps.context import StepContext, StepResult
from influray.steps.step import Recorded, Step
from influray.store.artifact import fingerprint, hash_file, read_manifest, require_manifest
from influray.store.checks import broken
from influray.store.mirror import present_folder, remove_folder
from influray.store.run_directory import RunDirectory

logger = logging.getLogger(__name__)


def select(context: StepContext) -> StepResult:
    """Compute every selection of the config that is not there yet."""
    directory = context.directory
    attribution = require_manifest(directory.attribution, "score")
    rows, columns = attribution["rows"], attribution["targets"]
    made = fingerprints(context.config, directory)
    todo, new = [], []
    id_root = str(Path(context.config.data.root).resolve())
    for selector in context.config.selectors:
        name = selector.name
        manifest = read_manifest(directory.selection(name))
        current = manifest is not None and manifest["fingerprint"] == made[name]
        if not current:
            new.append(name)
        if not current or broken(directory.selection(name), manifest or {}):
            plain = selector.model_dump(mode="json")
            arguments = {"run_dir": directory.address, "selector": plain, "fingerprint": made[name]}
            todo.append((name, {**arguments, "id_root": id_root, "roles": context.config.data.roles}))
    if todo:
        from influray.runtime.columns import worth_workers
        from influray.runtime.selection import SelectionJob, run_selection
        from influray.selectors.auto_budget import describe

        function = "influray.runtime.selecting:select_and_write"
        jobs = [SelectionJob(name, function, arguments, helped=True) for name, arguments in todo]
        workers = context.resources.workers if worth_workers(rows, columns) else 0
        # On a private cluster the workers share all CPUs, and the driver waits while they read.
        cpus = 0.0 if workers > 1 and context.cluster.owned else min(1.0, context.cluster.cpus)
        context.progress.current.expect(len(jobs), "selections")
        summaries = run_selection(
            *(directory.address, jobs, context.progress.current.on_status),
            cpus=cpus,
            workers=workers,
            cpus_per_worker=context.resources.cpus_per_worker,
        )
        for name, _ in todo:
            chosen = summaries[name]["budget"]
            if "auto" in chosen:
                text = describe(chosen["auto"])
                logger.info("selection %s: the budget chose itself: %d rows, by %s", name, chosen["examples"], text)
            if summaries[name]["copies"]:
                logger.warning(
                    "selection %s: %d of %d rows are copies of rows chosen before; constraints: {near_duplicates: "
                    "0.99} of the selector leaves them out",
                    *(name, summaries[name]["copies"], summaries[name]["budget"]["examples"]),
                )
        for name in new:  # a verdict on rows that are no longer chosen must not stand beside the new ones
            if present_folder(directory.path / "evaluation" / name).is_dir():
                directory.record_outdated("evaluate")
                remove_folder(directory.path / "evaluation" / name)
    facts = {"selections": len(made), "carried_out": len(todo)}
    return StepResult(fingerprint(made), not todo, facts, [f"selection/{name}/manifest.json" for name in made])


def fingerprints(config: Config, directory: RunDirectory) -> dict[str, str]:
    """Return by name what each selection is made from: matrix, pool, selector, ids that its files hold, and roles.

    Raises:
        ArtifactMismatch: there is no matrix or no pool.
    """
    matrix = require_manifest(directory.attribution, "score")["fingerprint"]
    manifest = require_manifest(directory.data("pool"), "run")
    pool = manifest["digest"]
    judged = {"of": manifest["cascade"]["rows"]} if "cascade" in manifest else {}
    root, made = Path(config.data.root), {}
    for selector in config.selectors:
        limits = selector.constraints
        files = [root / ids for ids in (limits.include, limits.exclude) if isinstance(ids, str)]
        read = [hash_file(file) for file in files if file.is_file()]  # one that is not there the selection refuses
        plain = selector.model_dump(mode="json")
        facts = {"step": "select", "ranks_from": 1, "matrix": matrix, "pool": pool, "selector": plain, "ids": read}
        facts |= {"roles": roles} if (roles := config.data.roles) else {}
        facts |= judged
        made[selector.name] = fingerprint(facts)
    return made


def _stale(config: Config, directory: RunDirectory, recorded: Recorded) -> str:
    made = fingerprints(config, directory)
    return (
        ""
        if fingerprint(made) == recorded["select"].get("fingerprint")
        else "a file of ids or the role of a task has changed"
    )


def _describe(config: Config) -> str:
    roles = "".join(f"; {role} {task}" for task, role in config.data.roles.items())
    return ", ".join(f"{one.name} ({one.method}, {one.budget})" for one in config.selectors) + roles


SELECT = Step("select", select, ("selectors",), _describe, _stale)
