"""The files that exports have written into a folder, and which of them may be replaced.

`.influray-export.json` names them with the digests of their content, "" while they are written. A file that is not
named there, or whose content is another, is somebody else's or was changed: it is never touched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from influray.protocols import ConfigError
from influray.store.artifact import hash_file, read_json, write_bytes, write_json
from influray.store.mirror import present, remove

LIST = ".influray-export.json"
SHARED = "dataset_info.json"  # LLaMA-Factory's, of all exports in the folder


class OwnFiles:
    """The exports of a folder. Raises ConfigError where the list cannot be read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._digests: dict[str, str] = read_json(folder / LIST)["files"]
        except FileNotFoundError:
            self._digests = {}
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"--to: {folder / LIST} is not the list of an export ({error}); remove it") from error

    def check(self, name: str) -> None:
        """Raise ConfigError where the file that is to be written, or one beside it, may not be replaced."""
        for one in (name, *self._beside(Path(name).stem)):
            self._refuse(one)
        if "," in name:
            raise ConfigError(f"--to: {name!r} has a comma, at which LLaMA-Factory parts names of datasets")

    def begin(self, name: str) -> None:
        """Note that a file and those beside it are about to be written: a killed export can be repeated."""
        self._digests |= dict.fromkeys((name, *self._beside(Path(name).stem)), "")
        write_json(self._folder / LIST, {"files": self._digests})

    def _beside(self, stem: str) -> tuple[str, ...]:
        return (f"{stem}.trl.py", f"{stem}.axolotl.yaml", f"{stem}.llamafactory.yaml", SHARED)

    def _refuse(self, name: str) -> None:
        path = self._folder / name
        if not present(path).exists():
            return
        if name not in self._digests:
            raise ConfigError(f"--to: {path} is there and was not written by an export; name another place")
        if self._digests[name] not in ("", hash_file(path)):
            raise ConfigError(f"--to: {path} was changed since it was exported; move it away, or name another place")

    def commit(self, file: Path, digest: str, texts: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[str, ...]]:
        """Write what stands beside an exported file and return trainer -> paths; what no longer holds is removed.

        `texts` are trainer -> ending of the name, or whole name, -> text.
        """
        stem = file.stem
        made: dict[str, tuple[str, ...]] = {}
        wanted: dict[str, bytes] = {}
        for trainer, of in texts.items():
            names = {name if name == SHARED else f"{stem}.{name}": text for name, text in of.items()}
            wanted |= {name: text.encode() for name, text in names.items()}
            made[trainer] = tuple(str(self._folder / name) for name in names)
        shared = self._entries()
        shared.pop(stem, None)
        if SHARED in wanted:
            shared |= json.loads(wanted[SHARED])
        if shared:
            wanted[SHARED] = (json.dumps(shared, indent=2, ensure_ascii=False) + "\n").encode()
        for name in self._beside(stem):
            if name not in wanted:
                remove(self._folder / name)
                del self._digests[name]
        self._digests |= {file.name: digest, **{name: _digest(data) for name, data in wanted.items()}}
        for name, data in wanted.items():
            write_bytes(self._folder / name, data)
        write_json(self._folder / LIST, {"files": self._digests})
        return made

    def _entries(self) -> dict[str, object]:
        try:
            return dict(read_json(self._folder / SHARED))
        except FileNotFoundError:
            return {}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
