"""`hf://org/name[/config][:split]`: rows of a Hugging Face data set, streamed through `datasets` (extra `hub`).

A local folder that `datasets` can load is `hf:///absolute/folder[:split]`.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from influray.extras import install_command
from influray.protocols import ConfigError, DataError

log = logging.getLogger(__name__)

PREFIX = "hf://"
BATCH_ROWS = 256
COUNT_SECONDS = 10.0
ANSWER_SECONDS = 10.0


class HubId(NamedTuple):
    """The parts of an `hf://` id. `config` is None for the data set's default one."""

    name: str
    config: str | None
    split: str


def parse(entry: str, where: str = "") -> HubId:
    """Return the parts of `hf://org/name[/config][:split]`. Raises ConfigError naming `where`."""
    body, _, split = entry.removeprefix(PREFIX).partition(":")
    parts = body.split("/")
    if body.startswith("/"):
        name, config = body, None
    else:
        name, config = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    if not body.strip("/") or (not body.startswith("/") and (len(parts) > 3 or not all(parts))):
        raise ConfigError(f"{where or entry}: {entry!r} is no data set; expected hf://org/name[/config][:split]")
    return HubId(name, config, split or "train")


@functools.cache
def unreachable() -> bool:
    """Return whether the hub gives no answer within `ANSWER_SECONDS`; asked once a process, and not when offline.

    The libraries' own time-outs are per request and file, and retried: a minute goes by before they give up.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return False  # they ask nothing then
    answered = threading.Event()

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=ANSWER_SECONDS)
            answered.set()
        except Exception as error:  # noqa: BLE001 - of whatever its transport is
            log.info("%s: %s", constants.ENDPOINT, error)
        finally:
            over.set()

    over = threading.Event()
    threading.Thread(target=ask, daemon=True).start()  # a name that no server resolves has no time-out
    over.wait(ANSWER_SECONDS)
    if not answered.is_set():
        log.warning("the hub (%s) does not answer: only what is on this machine is used", constants.ENDPOINT)
    return not answered.is_set()


def origin(entry: str) -> dict[str, Any]:
    """Return what the id means now: the files of the split with the revision (or local time stamp) of each."""
    identity, builder = _builder(entry)
    files = (builder.config.data_files or {}).get(identity.split)
    return {
        "entry": entry,
        "builder": builder.hash,
        "files": None if files is None else [str(file) for file in files],
        "revisions": None if files is None else [list(data) for data in files.origin_metadata],
    }


def batches(entry: str) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a data set in its order, as Arrow has them, so that they are decoded as those of files are.

    Raises DataError where the data set or its split cannot be loaded.
    """
    identity, builder = _builder(entry)
    try:
        stream = builder.as_streaming_dataset(split=identity.split).with_format("arrow")
    except (OSError, ValueError, *own_errors(True)) as error:
        raise DataError(f"{entry}: {error}") from error
    for table in stream.iter(batch_size=BATCH_ROWS):
        yield from table.to_batches()


def count(entry: str, seconds: float = COUNT_SECONDS) -> int | None:
    """Return how many rows a data set says that its split has; None where it does not say, or not within `seconds`.

    Nothing but what describes the data set is read. Offline, only what is on this machine is asked.
    """
    found: list[int | None] = []

    def ask() -> None:
        try:
            identity, builder = _builder(entry)
            split = (builder.info.splits or {}).get(identity.split)
            found.append(None if split is None else split.num_examples)
        except Exception as error:  # noqa: BLE001 - the hub's libraries raise whatever their transports do
            log.info("%s: not counted: %s", entry, error)

    # Their time-outs are per request and retried: another thread may go on waiting, this one does not.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def own_errors(hub: bool) -> tuple[type[Exception], ...]:
    """Return the exceptions that only `datasets` has (none where it is not in use, as it is not imported then)."""
    return (_datasets("").exceptions.DatasetsError,) if hub else ()


def _builder(entry: str) -> tuple[HubId, Any]:
    identity = parse(entry)
    datasets = _datasets(entry)
    if not identity.name.startswith("/") and unreachable():
        raise DataError(f"{entry}: the hub does not answer; where it cannot be reached, name files")
    try:
        return identity, datasets.load_dataset_builder(identity.name, identity.config)
    except (OSError, ValueError, *own_errors(True)) as error:
        raise DataError(f"{entry}: the data set cannot be loaded: {error}") from error


def _datasets(entry: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{entry}: hf:// needs the extra `hub`: {install_command('hub')}") from error
    return datasets
