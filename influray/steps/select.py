"""select: every selector of the config whose selection is not there yet."""

from __future__ import annotations

import shutil
from pathlib import Path

from influray.steps.context import StepContext, StepResult
from influray.store.artifact import fingerprint, hash_file, read_manifest, require_manifest


def select(context: StepContext) -> StepResult:
    """Carry out every selector of the config whose selection is not there yet."""
    directory = context.directory
    matrix = require_manifest(directory.attribution, "score")["fingerprint"]
    pool = context.catalogue("pool").digest
    todo, made = [], {}
    root = Path(context.config.data.root)
    for selector in context.config.selectors:
        plain = selector.model_dump(mode="json")
        name = selector.name
        files = [
            root / ids for ids in (selector.constraints.include, selector.constraints.exclude) if isinstance(ids, str)
        ]
        read = [
            hash_file(file) for file in files if file.is_file()
        ]  # one that is not there is refused by the selection
        made[name] = fingerprint({"step": "select", "matrix": matrix, "pool": pool, "selector": plain, "ids": read})
        manifest = read_manifest(directory.selection(name))
        if manifest is None or manifest["fingerprint"] != made[name]:
            arguments = {"run_dir": str(directory.path), "selector": plain, "fingerprint": made[name]}
            todo.append((name, {**arguments, "id_root": str(root.resolve())}))
    if todo:
        from influray.runtime.selection import SelectionJob, run_selection

        jobs = [SelectionJob(name, "influray.selectors.output:select_and_write", arguments) for name, arguments in todo]
        cpus = min(1.0, context.cluster.cpus)
        context.progress.current.expect(len(jobs), "selections")
        run_selection(directory.path, jobs, context.progress.current.on_status, cpus=cpus)
        for name, _ in todo:  # a verdict on rows that are no longer chosen must not stand beside the new ones
            shutil.rmtree(directory.path / "evaluation" / name, ignore_errors=True)
    return StepResult(fingerprint(made), skipped=not todo, facts={"selections": len(made), "carried_out": len(todo)})
