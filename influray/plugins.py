"""The one gate for code that a config names: which plug-ins this process may import, and what a plug-in must be.

A plug-in is "package.module:Class". Importing it runs code, so a name is imported only after it was permitted: by
`runs.admit`, which every verb and every Python entry passes, or by a caller who spells it out in code of her
own. Actors are given the names that their driver was permitted. Nothing here is imported before it is permitted, and
nothing is constructed before it is known to be a class of its seam.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from abc import ABCMeta
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, get_args

from influray.protocols import ConfigError, Featurizer, Makes, Projector, Reads, Scorer, Selector

NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
SEAMS: dict[str, ABCMeta] = {
    "featurizers": Featurizer,
    "projectors": Projector,
    "scorers": Scorer,
    "selectors": Selector,
}
# What lies in a run directory and nowhere else. One of them is enough: who packs a directory can leave out the others.
MARKS = (
    "run.json",
    "lease.json",
    "logs/metrics.jsonl",
    "data/pool/manifest.json",
    "data/target/manifest.json",
    "warmup/manifest.json",
    "features/pool",
    "features/target",
    "attribution/manifest.json",
    "selection/*/manifest.json",
)

_permitted: set[str] = set()
_trusting = 0


def is_plugin(name: str) -> bool:
    """Return whether a name of a config stands for outside code."""
    return ":" in name


def permit(names: Iterable[str]) -> None:
    """Let this process import plug-ins of these names from now on."""
    _permitted.update(name for name in names if is_plugin(name))


def permitted() -> tuple[str, ...]:
    """Return the names that this process may import, which it hands to the processes that it starts."""
    return tuple(sorted(_permitted))


@contextlib.contextmanager
def allow_plugins() -> Iterator[None]:
    """Trust the run directories that are opened in the block: plug-ins and model code they name may run.

    What `--allow-plugins` does for a command. Names that were permitted stay so for the life of the process.
    """
    global _trusting
    _trusting += 1
    try:
        yield
    finally:
        _trusting -= 1


def trusting() -> bool:
    """Return whether run directories are trusted at this moment."""
    return _trusting > 0


def run_directory_of(path: Path) -> Path | None:
    """Return the run directory that a config file is part of, None where its folder is none (see MARKS)."""
    for folder in dict.fromkeys((path.parent, path.resolve().parent)):
        if any(next(folder.glob(mark), None) is not None for mark in MARKS):
            return folder.resolve()
    return None


def load(seam: str, name: str, key: str) -> Any:
    """Return the class that a plug-in's name stands for.

    Raises:
        ConfigError: it may not be imported, cannot be, or is no class of `seam`; it names `key`.
    """
    kind = seam[:-1]
    if not NAME.fullmatch(name):
        raise ConfigError(f'{key}: found {name!r}; a plug-in is written "package.module:Class"')
    module, _, attribute = name.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"{key}: {name!r} is of Python's own library, which holds no {kind}; it is not a plug-in")
    if name not in _permitted:
        raise ConfigError(
            f"{key}: the plug-in {name!r} was not permitted, so it is not imported; a run directory may not name code "
            "unless --allow-plugins (in Python: influray.allow_plugins()) says that you trust it"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{key}: plug-in {name!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ConfigError(f"{key}: module {module!r} has no {attribute!r}") from error
    except Exception as error:
        raise ConfigError(f"{key}: plug-in {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    require_seam(seam, found, name, key)
    return found


def require_seam(seam: str, found: object, name: str, key: str) -> None:
    """Raise ConfigError where `found` is not a whole class of its seam; nothing of it is called."""
    kind, base = seam[:-1], SEAMS[seam]
    if not isinstance(found, type):
        raise ConfigError(f"{key}: {name!r} is a {type(found).__name__} and no class; a {kind} is a class")
    if not isinstance(found, ABCMeta) or not issubclass(found, base):
        others = [other[:-1] for other, one in SEAMS.items() if issubclass(found, one)]
        shaped = all(inspect.getattr_static(found, part, None) for part in base.__abstractmethods__)
        also = f"; it is a {others[0]}" if others else "; it has the methods of one: name the base" if shaped else ""
        raise ConfigError(
            f"{key}: {name!r} is no {kind}: it does not derive from influray.protocols.{base.__name__}{also}"
        )
    for part in _forgotten(found):
        raise ConfigError(f"{key}: the {kind} {name!r} has no {part} (influray.protocols.{base.__name__} says what of)")


def _forgotten(kind: ABCMeta) -> Iterator[str]:
    """Yield what a class of a seam has left out."""
    yield from (repr(part) for part in sorted(kind.__abstractmethods__))
    if issubclass(kind, Featurizer):
        for name, known in (("reads", get_args(Reads)), ("makes", get_args(Makes))):
            if (found := getattr(kind, name)) not in known:
                yield f"{name!r} that is one of {', '.join(known)} (found {found!r})"
    if issubclass(kind, Scorer) and kind.passes:
        own = {name: getattr(kind, name) is not getattr(Scorer, name) for name in ("sums", "fit")}
        yield from (f"{name!r}, which its {kind.passes} passes need" for name, there in own.items() if not there)
