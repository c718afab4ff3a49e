"""The miniature world: generated skills, a flawed pool, targets, and a base model of 0.7 M parameters.

It shows the whole job in minutes on a laptop, and its data are made so that the known pitfalls of a comparison
(overlapping questions, one-sided labels, solved or hopeless tasks) are absent by construction.
"""

from __future__ import annotations

from pathlib import Path

from influray.config import dump_config, load_config
from influray.miniature.world import write_world

HOME = Path(__file__).parent
BASE = HOME / "base"
CONFIG = HOME / "demo.yaml"


def prepare(folder: str | Path, seed: int = 0) -> Path:
    """Write the world of a seed and a config for it into `folder`; return the config, ready for `pipeline.run`.

    What lies there already is written again with the same bytes, so a finished run stays finished.
    """
    folder = Path(folder).resolve()
    write_world(folder, seed)
    config = load_config(CONFIG, {"model.base": str(BASE), "data.root": str(folder)})
    path = folder / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    return path
