"""Checks of a config and this machine, before anything else is read; influray.steps.preflight lists them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from influray.config import DataConfig
from influray.config_data import Entry
from influray.config_model import ModelConfig
from influray.data.hub import PREFIX
from influray.extras import install_command
from influray.protocols import ConfigError
from influray.registry import PROJECTORS, WARMED, check, make, resolve, resolve_method
from influray.scorers.options import expected_stores, make_scorer
from influray.scorers.propagation import propagating_scorers
from influray.steps.subject import Subject, context_length, require_unfitted, under
from influray.store.artifact import whole_manifest
from influray.store.claim import require_apart
from influray.store.uri import is_uri

# The packages that serve, where they are not of that name.
REPORTERS = {"tensorboard": ("tensorboard", "tensorboardX")}


def place(subject: Subject) -> None:
    """The run directory is a run's, and apart from what is read."""
    subject.directory.require_ours()
    config = subject.config
    root = Path(config.data.root)
    data = [(key, root / entry) for key, entry in _entries(subject) if not is_uri(entry)]
    require_apart(subject.directory.path, data)
    others = [(f"{key}.base", model.base) for key, model in config.models]
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


def exact_run(subject: Subject) -> None:
    """The run whose scores are carried over is there, and another one."""
    for scorer in propagating_scorers(subject.config, cascade=False):
        scorer.exact.require_apart(subject.directory)


def asked_for(subject: Subject) -> None:
    """The step that was asked for has something to do."""
    config = subject.config
    if config.cascade is None and subject.until == "cascade":
        raise ConfigError("cascade: required to run up to it, but not given (a mapping; {} takes all defaults)")
    if config.tune is None and subject.until in ("tune", "evaluate"):
        raise ConfigError(
            f"tune: required by `influray {subject.until}`, but not given (a mapping; {{}} takes all defaults)"
        )
    if subject.until == "evaluate" and not any(target.test for target in config.data.targets.values()):
        raise ConfigError("data.targets: no task has a `test`; name held-out records to evaluate on")
    if subject.until == "warmup" and subject.reads not in WARMED:
        raise ConfigError(
            f"features.featurizer: {config.features.featurizer!r} reads no checkpoint, so there is nothing to warm up"
        )


def packages(subject: Subject) -> None:
    """What must be installed besides influray's own requirements."""
    config = subject.config
    needed: list[tuple[str, str, str]] = []
    for key, model in _loaded(subject):
        if model.quantization != "none":
            needed.append(
                (f"{key}.quantization: {model.quantization!r}", "bitsandbytes", 'pip install "bitsandbytes>=0.46"')
            )
        if model.attention == "flash_attention_2":
            what = f"{key}.attention: 'flash_attention_2'"
            needed.append((what, "flash_attn", "pip install flash-attn --no-build-isolation"))
    hub = [(key, entry) for key, entry in _entries(subject) if entry.startswith(PREFIX)]
    needed += [(f"{key}: {entry!r}", "datasets", install_command("hub")) for key, entry in hub]
    for key, section, asked in (
        ("warmup", config.warmup, subject.trains),
        ("tune", config.tune, "tune" in subject.steps),
    ):
        if section is not None and asked:
            reports = [(name, *REPORTERS.get(name, (name,))) for name in section.report_to]
            for name, *modules in reports:
                module = next(filter(importlib.util.find_spec, modules), modules[0])
                needed.append((f"{key}.report_to: {name!r}", module, f"pip install {modules[0]}"))
    for what, module, install in needed:
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"{what} needs the package {module}, which is not installed: {install}")


def numbers_of_the_model(subject: Subject) -> None:
    """Types of weights that can be trained, and that the attention takes."""
    trained = [subject.config.model] * subject.trains + [subject.config.tuned.model] * _tunes(subject)
    for key, model in subject.config.models:
        key = f"{key}.dtype"
        if model.dtype == "float16" and model in trained:
            raise ConfigError(
                f"{key}: float16 cannot be trained without losing small gradients; take bfloat16 or float32"
            )
        if model.attention == "flash_attention_2" and model.dtype not in ("bfloat16", "float16"):
            raise ConfigError(f"{key}: flash_attention_2 takes bfloat16 or float16 alone (found {model.dtype})")
        if model.quantization != "none" and model.dtype == "float64":
            raise ConfigError(f"{key}: 4-bit weights are multiplied in float32, bfloat16 or float16 (found float64)")


def _of(key: str) -> AbstractContextManager[object]:
    """Return what puts the section of `tune.model` before messages on a model."""
    return nullcontext() if key == "model" else under(key.removesuffix(".model"))


def _tunes(subject: Subject) -> bool:
    return "tune" in subject.steps and subject.config.tune is not None


def _loaded(subject: Subject) -> list[tuple[str, ModelConfig]]:
    """Return the models that a step holds in memory, with their keys."""
    loads = {"model": subject.loads_model, "tune.model": _tunes(subject)}
    return [(key, model) for key, model in subject.config.models if loads[key]]


def base(subject: Subject) -> Iterator[str]:
    """The base is a folder with a config, or a hub id; a row of max_tokens fits into its context."""
    for key, model in subject.config.models:
        yield from _base(subject, key, model)


def _base(subject: Subject, key: str, model: ModelConfig) -> Iterator[str]:
    base, most, loaded = Path(model.base), subject.config.data.max_tokens, (key, model) in _loaded(subject)
    if base.is_file():
        raise ConfigError(f"{key}.base: {model.base!r} is a file; it must be the folder of a base model, or a hub id")
    if not (base / "config.json").is_file():
        if loaded or base.is_dir():
            from influray.model.loading import require_base

            with _of(key):
                require_base(model)
        return
    length = context_length(base)
    if not loaded or length is None or most <= length:
        return
    text = f"data.max_tokens: {most}, and {model.base!r} has positions for {length} tokens (config.json)"
    if most != DataConfig.model_fields["max_tokens"].default:
        raise ConfigError(f"{text}; lower it to that")
    yield f"{text}; the run goes on only if no row is longer than these"


def checkpoints(subject: Subject) -> None:
    """A list of weights has one for each checkpoint, and none was trained on targets whose gradients are taken."""
    from influray.scorers.weights import checkpoint_weights

    require_unfitted(subject.config)
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
    scored = whole_manifest(subject.directory.attribution) is not None
    wanted = {
        "model": warms or (_tunes(subject) and config.tuned is config and not scored),
        "tune.model": _tunes(subject),
    }
    for key, model in config.models:
        if wanted[key] and Path(model.base).is_dir():
            from influray.model.loading import check_lora_targets

            with _of(key):
                check_lora_targets(model)


def layers(subject: Subject) -> None:
    """The base has as many layers as are asked for; its shape alone is read."""
    config = subject.config
    asked = config.features.layers
    if subject.reads != "checkpoints" or not isinstance(asked, int) or not Path(config.model.base).is_dir():
        return
    from influray.model.loading import check_lora_targets

    total = check_lora_targets(config.model).get_text_config().num_hidden_layers
    if asked > total:
        raise ConfigError(
            f"features.layers: {asked}, and the base has {total}; give fewer, a share such as 0.5, or all"
        )


def resources(subject: Subject) -> None:
    """GPUs come whole, or a worker has a part of one."""
    gpus = subject.config.resources.gpus_per_worker
    if gpus != "auto" and (gpus < 0 or (gpus > 1 and gpus != int(gpus))):
        raise ConfigError(
            f"resources.gpus_per_worker: found {gpus:g}; a worker takes a whole number of GPUs or a part of one"
        )
