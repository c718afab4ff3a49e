"""The one gate for code that a config names: which plug-ins this process may import, and what a plug-in must be.

A plug-in is "package.module:Class", or the name of an entry point of an installed package, which stands for one
(groups influray.featurizers, influray.projectors, influray.scorers, influray.selectors). Importing it runs code, so a
class is imported only after it was permitted: by `runs.admit`, which every verb and every Python entry passes, or by a
caller who spells it out in code of her own. Actors are given what their driver was permitted. Nothing is constructed
before it is known to be a class of its seam.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import re
import sys
from abc import ABCMeta
from collections.abc import Iterable, Iterator
from importlib.metadata import entry_points
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


def target_of(seam: str, name: str) -> str | None:
    """Return the "package.module:Class" that a name stands for, itself or as an entry point; None where it does not.

    Nothing is imported. Raises ConfigError where packages offer several under this name.
    """
    if ":" in name:
        return name
    found = {point.value.partition("[")[0].strip() for point in entry_points(group=f"influray.{seam}", name=name)}
    if len(found) > 1:
        raise ConfigError(f"{name!r} is the name of several {seam}, so name one of them: {', '.join(sorted(found))}")
    return found.pop() if found else None


def offered(seam: str) -> list[str]:
    """Return the names of a seam's entry points, ascending."""
    return sorted(entry_points(group=f"influray.{seam}").names)


def permit(targets: Iterable[str]) -> None:
    """Let this process import these plug-ins, each "package.module:Class", from now on."""
    _permitted.update(targets)


def permitted() -> tuple[str, ...]:
    """Return the plug-ins that this process may import, which it hands to the processes that it starts."""
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


def load(seam: str, name: str, target: str, key: str) -> Any:
    """Return the class of a plug-in, `target` "package.module:Class", that a config calls by `name`.

    Raises:
        ConfigError: it may not be imported, cannot be, or is no class of `seam`; it names `key`.
    """
    kind = seam[:-1]
    if not NAME.fullmatch(target):
        raise ConfigError(f'{key}: found {name!r}; a plug-in is written "package.module:Class"')
    module, _, attribute = target.partition(":")
    if module.partition(".")[0] in sys.stdlib_module_names:
        raise ConfigError(f"{key}: {name!r} is of Python's own library, which holds no {kind}; it is not a plug-in")
    if target not in _permitted:
        raise ConfigError(
            f"{key}: the plug-in {name!r} was not permitted, so it is not imported; a run directory may not name code "
            "unless --allow-plugins (in Python: influray.allow_plugins()) says that you trust it"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        where = _where(module) if module == error.name or module.startswith(f"{error.name}.") else ""
        raise ConfigError(f"{key}: plug-in {name!r} cannot be imported: {error}{where}") from error
    except AttributeError as error:
        raise ConfigError(f"{key}: module {module!r} has no {attribute!r}") from error
    except Exception as error:
        raise ConfigError(f"{key}: plug-in {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    require_seam(seam, found, name, key)
    return found


def _where(module: str) -> str:
    """Say how a module that was not found can be."""
    top = Path(module.partition(".")[0])
    # Not searched unasked: whoever works in a folder of downloaded data would run what lies there under any name.
    if top.is_dir() or top.with_suffix(".py").is_file():
        return f"; it stands in the working directory, which is searched when you set PYTHONPATH={Path.cwd()}"
    return "; install it, or name the folder it stands in by PYTHONPATH"


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
