"""What a run directory, a config or a pool made by somebody else cannot do. Each seam's own tests have more."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

from influray import pipeline
from influray.config import parse_config
from influray.protocols import ArtifactMismatch, ConfigError
from influray.store.artifact import (
    ShardStore,
    read_manifest,
    read_sealed,
    write_manifest,
    write_sealed,
)
from influray.store.attribution import Attribution
from influray.store.datastore import Datastore
from tests.unit.test_artifact import KEY, table
from tests.unit.test_config import tree

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*(ROOT / "influray").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")])
OUTSIDE = ["../secret.arrow", "/etc/passwd", "..", "a/b.arrow", "a\\b.arrow", "x\0.arrow", 7, ["a"]]


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """The dotted names that a file calls."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name, parts = node.func, []
            while isinstance(name, ast.Attribute):
                parts.append(name.attr)
                name = name.value
            if isinstance(name, ast.Name):
                parts.append(name.id)
            found.append((".".join(reversed(parts)), node))
    return found


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_is_unpickled_evaluated_or_loaded_as_code(path):
    unsafe = {"eval", "exec", "os.system", "os.popen", "yaml.load", "marshal.loads", "shelve.open", "joblib.load"}
    for name, call in calls(path):
        where = f"{path.relative_to(ROOT)}:{call.lineno}: {name}"
        last = name.rpartition(".")[2]
        assert name not in unsafe, where
        assert not (name.startswith(("pickle.", "cloudpickle.", "dill.")) and last in ("load", "loads", "Unpickler")), (
            where
        )
        if name in ("torch.load", "load") and "torch" in name:
            assert keyword(call, "weights_only") is True, f"{where} without weights_only=True"
        if name in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") is False, f"{where} without allow_pickle=False"
        if last == "from_pretrained" and "AutoModel" in name:
            assert keyword(call, "use_safetensors") is True, f"{where} may read a pickle"
        assert keyword_shell(call) is not True, f"{where} goes through a shell"


def keyword_shell(call: ast.Call) -> object:
    return next((getattr(k.value, "value", None) for k in call.keywords if k.arg == "shell"), None)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_listens_on_every_interface_by_itself(path):
    constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
    assert not constants & {"0.0.0.0", "::"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_lead_out_of_its_folder(name, tmp_path):
    folder = tmp_path / "store"
    write_manifest(folder, {"parts": [{"key": KEY, "file": name, "sha256": "", "rows": 1}], "rows": 1, "dimension": 4})
    for reader in (read_manifest, Datastore, Attribution):
        with pytest.raises(ArtifactMismatch, match="no file of this folder"):
            reader(folder)


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_receipt_cannot_lead_out_of_its_folder_and_is_made_again(name, tmp_path):
    secret = tmp_path / "secret.arrow"
    secret.write_bytes(b"not yours")
    store = ShardStore(tmp_path / "store")
    receipt = store.commit(KEY, table(), {})
    path = tmp_path / "store" / "_receipts" / f"{KEY}.json"
    write_sealed(path, {**read_sealed(path), "file": name})
    assert store.receipt(KEY) is None
    assert store.valid_receipt(KEY) is None
    store.sweep(set())
    assert secret.read_bytes() == b"not yours"
    again = store.commit(KEY, table(), {})
    assert again.sha256 == receipt.sha256
    manifest = store.freeze([KEY], {})
    assert [(store.folder / part["file"]).parent for part in manifest["parts"]] == [store.folder]


def test_a_run_directory_made_elsewhere_cannot_name_code_to_import(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    for section in (
        {"features": {"featurizer": "evil:X"}},
        {"features": {"projector": {"name": "evil:X"}}},
        {"attribution": {"scorer": "evil:X"}},
        {"selectors": [{"name": "a", "method": "evil:X", "budget": 1}]},
    ):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree(**section)))
        (tmp_path / "run.json").write_text("{}")
        with pytest.raises(ConfigError, match="may not name code to import"):
            pipeline.resolve(tmp_path / "config.yaml")


def test_a_config_has_no_place_for_a_credential():
    """What opens a store or a cluster comes from the environment, which is written nowhere."""
    keys: set[str] = set()

    def walk(value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                keys.add(str(key).lower())
                walk(inner)

    walk(parse_config(tree(tune={})).model_dump(mode="json"))
    assert not {key for key in keys for word in ("password", "secret", "auth", "credential", "api_key") if word in key}


@pytest.mark.parametrize("name", ["../up", "a/b", "..", ".hidden", "", "x" * 65, "a\nb"])
def test_names_that_become_folders_cannot_leave_the_run_directory(name):
    for section in (
        {"selectors": [{"name": name, "method": "bids", "budget": 1}]},
        {"data": {"pool": "p", "targets": {name: "t"}}},
    ):
        with pytest.raises(ConfigError):
            parse_config(tree(**section))
