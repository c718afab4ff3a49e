"""In what share of coordinates epsilon outweighs Adam's second moment: read from a run's datastores, and in words."""

from __future__ import annotations

from collections.abc import Sequence

from influray.config import Config
from influray.store.artifact import RECEIPTS, ShardStore, whole_manifest
from influray.store.mirror import children
from influray.store.run_directory import RunDirectory

MOSTLY = 0.5  # a larger share is warned of


def stored_shares(directory: RunDirectory, checkpoints: int) -> list[float]:
    """Return the share of each checkpoint of which some pool rows are there; [] of directions without epsilon."""
    found = []
    for number in range(1, checkpoints + 1):
        folder = directory.features("pool", number)
        facts = whole_manifest(folder) or _first_details(ShardStore(folder))
        found.append(facts.get("epsilon_share"))
    return [share for share in found if share is not None]


def _first_details(store: ShardStore) -> dict:
    """Return what the first shard that is there tells of its making."""
    receipts = (store.receipt(path.stem) for path in children(store.folder / RECEIPTS, "*.json"))
    return next((dict(receipt.details) for receipt in receipts if receipt is not None), {})


def mostly_epsilon(shares: Sequence[float]) -> bool:
    """Return whether epsilon rules at some checkpoint."""
    return max(shares, default=0.0) > MOSTLY


def epsilon_text(shares: Sequence[float], config: Config) -> str:
    """Return what is to be said of the shares, one a checkpoint, and where it matters the settings that change them."""
    text = f"epsilon outweighs Adam's second moment in {', '.join(f'{one:.0%}' for one in shares)} of coordinates"
    if not mostly_epsilon(shares):
        return text
    longer = "" if config.warmup.checkpoints else "a longer warmup (warmup.fraction, warmup.epochs) or "
    return (
        f"{text}, so the direction is mostly momentum plus the plain gradient; {longer}features.adam_epsilon_mode "
        "changes it, features.direction: sgd does without Adam"
    )
