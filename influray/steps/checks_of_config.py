"""Checks of a config and this machine, before anything else is read; influray.steps.preflight lists them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from influray.config import DataConfig
from influray.config_data import Entry
from influray.data.hub import PREFIX
from influray.extras import install_command
from influray.protocols import ConfigError
from influray.registry import PROJECTORS, check, make, resolve, resolve_method
from influray.scorers.options import expected_stores, make_scorer
from influray.steps.subject import Subject
from influray.store.artifact import whole_manifest
from influray.store.claim import require_apart
from influray.store.uri import is_uri


def place(subject: Subject) -> None:
    """The run directory is a run's, and apart from what is read."""
    subject.directory.require_ours()
    config = subject.config
    root = Path(config.data.root)
    data = [(key, root / entry) for key, entry in _entries(subject) if not is_uri(entry)]
    require_apart(subject.directory.path, data)
    others = [("model.base", config.model.base)]
    for i, checkpoint in enumerate(config.warmup.checkpoints):
        others.append((f"warmup.checkpoints.{i}.adapter", checkpoint.adapter))
        others.append((f"warmup.checkpoints.{i}.optimizer", checkpoint.optimizer or ""))
    require_apart(
        subject.directory.path, [(key, Path(given)) for key, given in others if given and Path(given).exists()], False
    )


def _entries(subject: Subject) -> Iterator[tuple[str, str]]:
    """Yield (dotted key, file, folder or id) of all that the config reads as data."""
    data = subject.config.data
    yield from _named("data.pool", data.pool)
    for task, target in data.targets.items():
        yield from _named(f"data.targets.{task}.files", target.files)
        yield from _named(f"data.targets.{task}.test", target.test)


def _named(key: str, entries: Sequence[Entry]) -> Iterator[tuple[str, str]]:
    for i, entry in enumerate(entries):
        if isinstance(entry, str):
            yield f"{key}.{i}", entry
            continue
        yield from ((f"{key}.{i}.files.{j}", file) for j, file in enumerate(entry.files))
        if entry.weight_of_ids is not None:
            yield f"{key}.{i}.weight_of_ids", entry.weight_of_ids


def names(subject: Subject) -> None:
    """Names and options of featurizer, projector, scorer and selectors."""
    from influray.selectors.api import check_method, make_selector

    config = subject.config
    stores = expected_stores(config)
    check("featurizers", config.features.featurizer, config.features.options)
    if config.features.projector.name not in PROJECTORS:  # whose modules import torch
        resolve("projectors", config.features.projector.name, "features.projector.name")
    make_scorer(config.attribution.scorer, stores, config.attribution.options)
    for index, selector in enumerate(config.selectors):
        name, preset = resolve_method(selector.method)
        try:
            check_method(selector.method)
            made = make_selector(name, {**preset, **selector.options})
        except ConfigError as error:
            raise ConfigError(f"selectors.{index}.{error}") from error
        limited = selector.constraints.near_duplicates is not None
        if (made.needs_features or limited) and stores.makes != "vectors":
            who = "constraints.near_duplicates" if limited else f"method: {selector.method!r}"
            raise ConfigError(
                f"selectors.{index}.{who} compares the feature vectors of rows, and features.featurizer "
                f"{config.features.featurizer!r} makes none; take gradient or representation"
            )


def asked_for(subject: Subject) -> None:
    """The step that was asked for has something to do."""
    config = subject.config
    if config.tune is None and subject.until in ("tune", "evaluate"):
        raise ConfigError(
            f"tune: required by `influray {subject.until}`, but not given (a mapping; {{}} takes all defaults)"
        )
    if subject.until == "evaluate" and not any(target.test for target in config.data.targets.values()):
        raise ConfigError("data.targets: no task has a `test`; name held-out records to evaluate on")
    if subject.until == "warmup" and subject.reads != "checkpoints":
        raise ConfigError(
            f"features.featurizer: {config.features.featurizer!r} reads no checkpoint, so there is nothing to warm up"
        )


def packages(subject: Subject) -> None:
    """What must be installed besides influray's own requirements."""
    config = subject.config
    needed: list[tuple[str, str, str]] = []
    if subject.loads_model and config.model.quantization != "none":
        needed.append(
            (f"model.quantization: {config.model.quantization!r}", "bitsandbytes", 'pip install "bitsandbytes>=0.46"')
        )
    if subject.loads_model and config.model.attention == "flash_attention_2":
        needed.append(
            ("model.attention: 'flash_attention_2'", "flash_attn", "pip install flash-attn --no-build-isolation")
        )
    hub = [(key, entry) for key, entry in _entries(subject) if entry.startswith(PREFIX)]
    needed += [(f"{key}: {entry!r}", "datasets", install_command("hub")) for key, entry in hub]
    for what, module, install in needed:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{what} needs the package {module}, which is not installed: {install}")


def numbers_of_the_model(subject: Subject) -> None:
    """Types of weights that can be trained, and that the attention takes."""
    model = subject.config.model
    tunes = "tune" in subject.steps and subject.config.tune is not None
    if model.dtype == "float16" and (subject.trains or tunes):
        raise ConfigError(
            "model.dtype: float16 cannot be trained without losing small gradients; take bfloat16 or float32"
        )
    if model.attention == "flash_attention_2" and model.dtype not in ("bfloat16", "float16"):
        raise ConfigError(f"model.dtype: flash_attention_2 takes bfloat16 or float16 alone (found {model.dtype})")
    if model.quantization != "none" and model.dtype == "float64":
        raise ConfigError("model.dtype: 4-bit weights are multiplied in float32, bfloat16 or float16 (found float64)")


def base(subject: Subject) -> Iterator[str]:
    """The base is a folder with a config, or a hub id; a row of max_tokens fits into its context."""
    model, most = subject.config.model, subject.config.data.max_tokens
    base = Path(model.base)
    if base.is_file():
        raise ConfigError(f"model.base: {model.base!r} is a file; it must be the folder of a base model, or a hub id")
    if not base.is_dir():
        if subject.loads_model:
            from influray.model.loading import require_base

            require_base(model)
        return
    if not (base / "config.json").is_file():
        from influray.model.loading import require_base

        require_base(model)
    length = subject.context_length
    if not subject.loads_model or length is None or most <= length:
        return
    text = f"data.max_tokens: {most}, and {model.base!r} has positions for {length} tokens (config.json)"
    if most != DataConfig.model_fields["max_tokens"].default:
        raise ConfigError(f"{text}; lower it to that")
    yield f"{text}; the run goes on only if no row is longer than these"


def checkpoints(subject: Subject) -> None:
    """A list of weights has one for each checkpoint."""
    from influray.scorers.weights import checkpoint_weights

    weights = subject.config.attribution.weights
    if not isinstance(weights, str):
        checkpoint_weights(weights, [1.0] * (len(expected_stores(subject.config).weights) or len(weights)))


def projector(subject: Subject) -> None:
    """The projector takes its options, and the direction; made for a small model, which takes a moment."""
    config = subject.config
    settings = config.features.projector
    if subject.reads != "checkpoints" or whole_manifest(subject.directory.features("pool", 1)) is not None:
        return
    from influray.protocols import FactorProjector

    given = settings.dimension, settings.dimension, settings.seed, "cpu"
    made = make("projectors", settings.name, settings.options, *given)
    if isinstance(made, FactorProjector) and config.features.direction != "sgd":
        raise ConfigError(
            f"features.direction: {config.features.direction!r} changes every coordinate of a gradient, and the "
            f"projector {settings.name!r} never forms one; set it to sgd, or take another features.projector.name"
        )


def adapter(subject: Subject) -> None:
    """The adapter's targets are layers of the base; its shape alone is read."""
    config = subject.config
    warms = subject.trains and whole_manifest(subject.directory.warmup) is None
    if not Path(config.model.base).is_dir() or not (warms or ("tune" in subject.steps and config.tune is not None)):
        return
    if not warms and whole_manifest(subject.directory.attribution) is not None:
        return
    from influray.model.loading import check_lora_targets

    check_lora_targets(config.model)


def resources(subject: Subject) -> None:
    """GPUs come whole, or a worker has a part of one."""
    gpus = subject.config.resources.gpus_per_worker
    if gpus != "auto" and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise ConfigError(
            f"resources.gpus_per_worker: found {gpus:g}; a worker takes a whole number of GPUs or a part of one"
        )
