"""Warmups that are not one training on the pool: checkpoints of the user's own, and adapters of the tasks.

Each leaves checkpoint-1 .. checkpoint-K in the folder it is given and returns what the manifest says of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.config import Config
from influray.config_model import FinetuneConfig, ImportedCheckpoint, WarmupConfig
from influray.job_status import Tell
from influray.protocols import TokenizedExample
from influray.store.artifact import hash_file, replace_folder
from influray.store.mirror import present_folder, remove_folder

if TYPE_CHECKING:
    from influray.model.history import Report


@dataclass(frozen=True)
class Part:
    """The tasks that one adapter is trained on, and its target rows, int64 ascending."""

    tasks: tuple[str, ...]
    rows: np.ndarray


def parts_of(warmup: WarmupConfig, groups: Sequence[str], rows: np.ndarray) -> list[Part]:
    """Return what the adapters of a warmup on targets are trained on, in the order of checkpoints, the base left out.

    `groups` are the tasks of all targets, `rows` those that are trained on.
    """
    group_n = np.array([groups[row] for row in rows.tolist()], object)
    return [Part(tasks, rows[np.isin(group_n, tasks)]) for tasks in warmup.tuned_on(groups)[1:]]


def train_adapters(
    config: Config,
    settings: FinetuneConfig,
    parts: Sequence[Part],
    examples_of: Callable[[np.ndarray], list[TokenizedExample]],
    work: Path,
    identity: str,
    device: Any,
    device_map: str | None,
    tell: Tell,
    report: Report,
) -> dict[str, Any]:
    """Train an adapter for each part, all from one initial adapter, which is checkpoint 1: with its B = 0 it is the
    base, to the last bit of a loss. With several ranks each calls this, and rank 0 writes.

    A training that was interrupted goes on from its last checkpoint, and one that had ended is not repeated.
    """
    from influray.model.checkpoints import load_checkpoint, save_checkpoint
    from influray.model.finetune import finetune
    from influray.model.loading import attach_new_adapter, load_base
    from influray.model.step_plan import barrier, process_group

    rank, ranks = process_group()
    model = attach_new_adapter(load_base(config.model, device, device_map), config.model.lora, settings.seed)
    if rank == 0:
        work.mkdir(parents=True, exist_ok=True)
        save_checkpoint(work / "checkpoint-1", model, None, epoch=0, mean_learning_rate=0.0, rows=0, losses=())
    results, tokens = [], 0
    for number, part in enumerate(parts):
        if number:
            model = attach_new_adapter(model.unload(), config.model.lora, settings.seed)
        examples = examples_of(part.rows)
        tokens += sum(example.tokens for example in examples)

        def on_step(done: int, total: int, loss: float, number: int = number) -> None:
            tell(done, total, "steps", loss, (number + done / total) / len(parts))

        results.append(
            finetune(
                *(model, examples, settings, work / f"adapter-{number}"),
                identity=identity,
                keep="last",
                on_step=on_step,
                report=replace(report, name=f"{report.name}/{'+'.join(part.tasks)}"),
            )
        )
    barrier()  # rank 0 has written the first, and moves away what the others have just read
    trained = [one.checkpoints[-1] for one in results]
    made = [load_checkpoint(present_folder(work / "checkpoint-1")), *trained]
    facts = {
        "rows": sum(len(part.rows) for part in parts),
        "tokens": tokens,
        "seed": settings.seed,
        "steps": sum(one.steps for one in results),
        "losses": [list(one.losses) for one in results],
        "ranks": ranks,
        "checkpoints": len(made),
        "mean_learning_rates": [one.mean_learning_rate for one in made],
        "digests": [one.digest for one in made],
        "tasks": [[], *(list(part.tasks) for part in parts)],
        "imported": False,
    }
    barrier()
    if rank == 0:
        for number, checkpoint in enumerate(trained):
            replace_folder(checkpoint.folder, work / f"checkpoint-{number + 2}")
            remove_folder(work / f"adapter-{number}")
    return facts


def import_checkpoints(config: Config, work: Path, device_map: str | None) -> dict[str, Any]:
    """Check and copy the checkpoints that `warmup.checkpoints` names."""
    from influray.model.checkpoints import import_checkpoint
    from influray.model.loading import attach_adapter, load_base, require_all_linear, swap_adapter
    from influray.model.tracked_weights import lora_weights

    model, checkpoints = None, []
    for number, imported in enumerate(config.warmup.checkpoints, start=1):
        if model is None:
            model = attach_adapter(load_base(config.model, "cpu", device_map), imported.adapter)
        else:
            model = swap_adapter(model, imported.adapter)
        require_all_linear(model, config.model.lora)
        parameters = [(weight.name, tuple(weight.module.weight.shape)) for weight in lora_weights(model)]
        key = f"warmup.checkpoints.{number - 1}"
        folder = work / f"checkpoint-{number}"
        checkpoints.append(import_checkpoint(imported, parameters, folder, epoch=number, key=key))
    return {
        "checkpoints": len(checkpoints),
        "mean_learning_rates": [checkpoint.mean_learning_rate for checkpoint in checkpoints],
        "digests": [checkpoint.digest for checkpoint in checkpoints],
        "imported": True,
    }


def imported_facts(imported: ImportedCheckpoint) -> Mapping[str, Any]:
    """Return what a warmup that imports a checkpoint depends on; its files are hashed."""
    paths = [Path(imported.adapter) / "adapter_config.json", Path(imported.adapter) / "adapter_model.safetensors"]
    if imported.optimizer is not None:
        paths.append(Path(imported.optimizer))
    digests = [hash_file(path) if path.is_file() else "" for path in paths]
    return {"digests": digests, "mean_learning_rate": imported.mean_learning_rate}
