"""What can be named in a config: one table per seam, name -> "module:attribute" and a line for people.

Nothing is imported until it is used. A method of one's own is given as "package.module:Class" in place of a
name. A new method is one file and one line here.
"""

from __future__ import annotations

import difflib
import importlib
from dataclasses import dataclass
from typing import Any

from influray.plugins import is_plugin, load
from influray.protocols import ConfigError, Reads


@dataclass(frozen=True, slots=True)
class Entry:
    """A name's meaning."""

    target: str  # "module:attribute"
    summary: str


FEATURIZERS: dict[str, Entry] = {
    "gradient": Entry("influray.features.gradient:GradientFeaturizer", "projected per-example LoRA gradients (LESS)"),
    "representation": Entry(
        "influray.features.representation:RepresentationFeaturizer", "pooled last hidden states of the base (RDS+)"
    ),
    "loss": Entry("influray.features.loss:LossFeaturizer", "loss, EL2N and length under the base; one forward"),
    "ngram": Entry("influray.features.ngram:NgramFeaturizer", "hashed n-gram counts of the text, no model (DSIR)"),
}

PROJECTORS: dict[str, Entry] = {
    "rademacher": Entry(
        "influray.features.projectors.rademacher:RademacherProjector", "dense +-1 signs, streamed in blocks"
    ),
    "sparse_jl": Entry(
        "influray.features.projectors.sparse_jl:SparseJLProjector", "s signed non-zeros per coordinate; the fastest"
    ),
    "hadamard": Entry(
        "influray.features.projectors.hadamard:HadamardProjector", "randomised Hadamard transforms of blocks, added up"
    ),
    "factored": Entry(
        "influray.features.projectors.factored:FactoredProjector", "layer inputs and output gradients first (LoGra)"
    ),
    "identity": Entry(
        "influray.features.projectors.identity:IdentityProjector", "the gradient itself; D must equal P; for tests"
    ),
}

SCORERS: dict[str, Entry] = {
    "inner_product": Entry(
        "influray.scorers.inner_product:InnerProduct", "checkpoint-weighted cosine or dot product (LESS)"
    ),
    "whitened": Entry("influray.scorers.whitened:Whitened", "cosine of jointly whitened rows (TAROT)"),
    "gram": Entry("influray.scorers.gram:Gram", "through the inverse Gram matrix of plain gradients (TRAK, DsDm)"),
    "datainf": Entry("influray.scorers.datainf:DataInf", "closed-form inverse Hessian of each LoRA module (DataInf)"),
    "grand": Entry("influray.scorers.grand:GraNd", "norm of the plain gradient; asks for no target"),
    "vog": Entry("influray.scorers.vog:VoG", "spread of the gradient over checkpoints; asks for no target"),
    "dsir": Entry("influray.scorers.dsir:DSIR", "log importance weight of hashed n-grams, one column a task (DSIR)"),
    "bm25": Entry("influray.scorers.bm25:BM25", "the targets as queries, pool rows as documents (BM25)"),
    "loss": Entry("influray.scorers.difficulty:MeanLoss", "mean answer loss, whatever the targets"),
    "el2n": Entry("influray.scorers.difficulty:EL2N", "mean |softmax - one-hot|, whatever the targets (EL2N)"),
    "length": Entry("influray.scorers.difficulty:Length", "tokens of the answers, whatever the targets"),
}

SELECTORS: dict[str, Entry] = {
    "balanced": Entry("influray.selectors.balanced:Balanced", "iterative balanced selection (BIDS)"),
    "top_k": Entry("influray.selectors.top_k:TopK", "highest reduced score first (LESS, sum, instance max)"),
    "quota": Entry("influray.selectors.quota:Quota", "an equal share of the budget per task, by its own mean"),
    "round_robin": Entry(
        "influray.selectors.round_robin:RoundRobin", "targets or tasks in turn take their best (RDS+)"
    ),
    "layers": Entry("influray.selectors.layers:Layers", "every column's best, then every second best (TAROT)"),
    "facility_location": Entry(
        "influray.selectors.facility_location:FacilityLocation", "most added to the best chosen row of every target"
    ),
    "strata": Entry(
        "influray.selectors.strata:Strata", "a draw from every level of merit, rare levels first (DEALRec)"
    ),
    "gumbel_top_k": Entry("influray.selectors.gumbel_top_k:GumbelTopK", "a draw with odds by merit (MATES)"),
    "longest": Entry("influray.selectors.longest:Longest", "most tokens first; needs the rows' tokens"),
    "random": Entry("influray.selectors.random:Random", "a seeded uniform sample"),
}

SEAMS: dict[str, dict[str, Entry]] = {
    "featurizers": FEATURIZERS,
    "projectors": PROJECTORS,
    "scorers": SCORERS,
    "selectors": SELECTORS,
}

# Published methods that are a selector with certain options: usable wherever a selector's name is.
METHODS: dict[str, tuple[str, dict[str, Any], str]] = {
    "bids": ("balanced", {"normaliser": "zscore"}, "BIDS, arXiv 2501.12147"),
    "less": ("top_k", {"normaliser": "none", "reduction": "group_mean_max"}, "LESS, arXiv 2402.04333"),
    "normalised_instance_max": (
        "top_k",
        {"normaliser": "zscore", "reduction": "instance_max"},
        "BIDS without iteration, arXiv 2501.12147",
    ),
    "instance_max": ("top_k", {"normaliser": "none", "reduction": "instance_max"}, "BIDS, unnormalised ablation"),
    "sum": ("top_k", {"normaliser": "none", "reduction": "sum"}, "the plain sum over targets"),
    "icons": ("top_k", {"normaliser": "none", "reduction": "votes"}, "ICONS, arXiv 2501.00654"),
    "rr": ("round_robin", {"over": "instances"}, "round robin over targets, arXiv 2602.14696"),
    "rr_tasks": (
        "round_robin",
        {"over": "tasks", "normaliser": "none", "task_score": "max"},
        "round robin over tasks as RDS+, arXiv 2503.01807",
    ),
    "cropi": ("top_k", {"normaliser": "none", "reduction": "reciprocal_rank"}, "CROPI, arXiv 2510.26491"),
    "dsir": (
        "gumbel_top_k",
        {"normaliser": "none", "reduction": "instance_max", "standardise": False, "temperature": 1.0},
        "a draw by log importance weight, arXiv 2302.03169",
    ),
    "betr": ("top_k", {"normaliser": "none", "reduction": "best_rank"}, "BETR's best rank, arXiv 2507.12466"),
}


def resolve(seam: str, name: str, key: str) -> Any:
    """Return what `name` stands for in the table of `seam`, or the plug-in "package.module:Class" itself.

    Raises:
        ConfigError: no such name (with the nearest one), or a plug-in that may not be imported, cannot be, or is no
            class of the seam (influray.plugins); it names `key`.
    """
    table = SEAMS[seam]
    if name in table:
        module, _, attribute = table[name].target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    if not is_plugin(name):
        near = difflib.get_close_matches(name, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{key}: no {seam[:-1]} is called {name!r}{hint} (known: {', '.join(sorted(table))})")
    return load(seam, name, key)


def featurizer_reads(name: str) -> Reads:
    """Return what a featurizer is made from (see protocols.Featurizer). Raises ConfigError as `resolve`."""
    return getattr(resolve("featurizers", name, "features.featurizer"), "reads", "checkpoints")


def resolve_method(name: str) -> tuple[str, dict[str, Any]]:
    """Return (selector, options) of a published method's name, or (name, {}) where it names a selector."""
    if name in METHODS:
        selector, options, _ = METHODS[name]
        return selector, dict(options)
    return name, {}
