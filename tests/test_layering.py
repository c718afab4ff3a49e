"""Imports point down only, ray stays in runtime and ask, and siblings of a seam do not know each other."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "influray"
# From the bottom up. A part may import from its own line and from those above it in this list.
LAYERS = [
    {"protocols"},
    {"config_messages"},
    {"plugins", "options"},
    {"registry", "interrupts", "formatting"},
    {"config_yaml"},
    {"config_base"},
    {"config_data"},
    {"config"},
    {"store"},
    {"data"},
    {"model"},
    {"evaluation"},
    {"features", "scorers", "selectors"},
    {"testing"},
    {"progress"},
    {"runtime"},
    {"report"},
    {"ask"},
    {"steps"},
    {"planning"},
    {"runs"},
    {"pipeline"},
    {"miniature"},
    {"cli"},
    {"__main__"},
]
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
SEAMS = {"scorers", "selectors", "features"}  # one file a method there: methods share helpers, not each other


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def part_of(path: Path) -> str:
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down(path: Path):
    part = part_of(path)
    if part == "__init__":
        return  # its names are imported when they are used
    assert part in LEVEL, f"{path.name} belongs to no layer: give it one in LAYERS"
    for name in imports(path):
        pieces = name.split(".")
        if pieces[0] != "influray" or len(pieces) < 2 or pieces[1] not in LEVEL:
            continue
        other = pieces[1]
        if other == part:
            continue
        assert LEVEL[other] < LEVEL[part], f"{path.relative_to(ROOT)} imports {name}: {other} is not below {part}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_ray_is_imported_in_runtime_and_ask_only(path: Path):
    if part_of(path) in ("runtime", "ask"):
        return
    assert not {name for name in imports(path) if name.split(".")[0] == "ray"}, f"{path.name} imports ray"


def test_methods_of_a_seam_do_not_import_each_other():
    import influray.registry as registry

    methods = {entry.target.split(":")[0] for table in registry.SEAMS.values() for entry in table.values()}
    for path in modules():
        module = "influray." + str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
        if module in methods:
            others = (methods - {module}) & imports(path)
            assert not others, f"{module} imports the method {others}"


def test_every_registry_entry_can_be_resolved():
    import influray.registry as registry

    for seam, table in registry.SEAMS.items():
        for name in table:
            assert registry.resolve(seam, name, "key") is not None


def test_importing_the_package_imports_nothing_heavy():
    import subprocess
    import sys

    code = "import influray, influray.config, influray.cli, sys; print([m for m in ('torch','transformers','ray','faiss','pandas') if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )


def test_files_stay_readable():
    long = {str(p.relative_to(ROOT)): n for p in modules() if (n := len(p.read_text().splitlines())) > 400}
    assert not long, f"over 400 lines: {long}"
