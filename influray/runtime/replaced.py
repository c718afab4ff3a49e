"""Something of Ray's that there is no option for, replaced for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, MutableMapping
from typing import Any


@contextlib.contextmanager
def replaced(names: MutableMapping[str, Any], name: str, value: Any) -> Iterator[None]:
    """Let `name` mean `value` among the names of a module (`__dict__`), or of the environment, while the block runs."""
    before = names.get(name)
    names[name] = value
    try:
        yield
    finally:
        if before is None:
            del names[name]
        else:
            names[name] = before
