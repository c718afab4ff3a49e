"""The miniature world: generated skills, a flawed pool, targets, and a base model of 0.7 M parameters.

It shows the whole job in minutes on a laptop, and its data are made so that the known pitfalls of a comparison
(overlapping questions, one-sided labels, solved or hopeless tasks) are absent by construction.
"""

from __future__ import annotations

from pathlib import Path

from influray.config import dump_config, load_config
from influray.miniature.world import DEMO, SMALL, write_world
from influray.protocols import ConfigError

HOME = Path(__file__).parent
BASE = HOME / "base"
CONFIG = HOME.parent / "configs" / "demo.yaml"


# Of the small world: every step once, so that a first look takes a minute.
QUICKER = {
    "warmup.fraction": 0.1,
    "warmup.epochs": 1,
    "features.rows_per_shard": 150,
    "features.projector.dimension": 128,
    "tune.selections": ["bids", "less"],
    "tune.steps": 20,
    "tune.seeds": [0],
}


def prepare(folder: str | Path, seed: int = 0, size: str = "full") -> Path:
    """Write the world of a seed and a config for it into `folder`; return the config, ready for `pipeline.run`.

    `size` is "full", the comparison of the README, or "small", which only shows the steps. What lies there already is
    written again with the same bytes, so a finished run stays finished.

    Raises:
        ConfigError: another size.
    """
    sizes = {"full": (DEMO, {}), "small": (SMALL, QUICKER)}
    if size not in sizes:
        raise ConfigError(f"--size: found {size!r}, expected full, small or real")
    of_world, changes = sizes[size]
    folder = Path(folder).resolve()
    write_world(folder, seed, of_world)
    config = load_config(CONFIG, {"model.base": str(BASE), "data.root": str(folder), **changes})
    path = folder / "config.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    return path
