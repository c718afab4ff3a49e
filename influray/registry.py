"""What can be named in a config: one table per seam, name -> "module:attribute" and a line for people.

Nothing is imported until it is used. A method of one's own is given as "package.module:Class" in place of a
name, or by that of an entry point (influray.plugins). A new method is one file and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from influray.config_messages import near
from influray.options import check_options
from influray.plugins import load, offered, target_of
from influray.protocols import ConfigError, Reads, Traits


@dataclass(frozen=True, slots=True)
class Entry:
    """A name's meaning."""

    target: str  # "module:attribute"
    summary: str
    traits: Traits | None = None  # of a featurizer, for those who would not import torch to know them
    reads: tuple[str, ...] = ()  # of a scorer, the featurizers whose datastores it takes


FEATURIZERS: dict[str, Entry] = {
    "gradient": Entry(
        "influray.features.gradient:GradientFeaturizer",
        "projected per-example LoRA gradients (LESS)",
        Traits("checkpoints", "vectors", ("norm", "grad_norm", "loss")),
    ),
    "representation": Entry(
        "influray.features.representation:RepresentationFeaturizer",
        "pooled last hidden states of the base (RDS+)",
        Traits("base", "vectors", ("norm", "tokens")),
    ),
    "loss": Entry(
        "influray.features.loss:LossFeaturizer",
        "loss, EL2N and length under the base; one forward",
        Traits("base", "facts", ("loss", "el2n", "tokens")),
    ),
    "checkpoint_loss": Entry(
        "influray.features.loss:CheckpointLossFeaturizer",
        "the same under each warmup adapter; a forward for each",
        Traits("adapters", "facts", ("loss", "el2n", "tokens")),
    ),
    "ngram": Entry(
        "influray.features.ngram:NgramFeaturizer",
        "hashed n-gram counts of the text, no model (DSIR)",
        Traits("records", "counts", ("tokens",)),
    ),
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

WARMED = ("checkpoints", "adapters")  # what is read is made by the warmup

VECTORS, GRADIENTS, COUNTS = ("representation", "gradient"), ("gradient",), ("ngram",)

SCORERS: dict[str, Entry] = {
    "inner_product": Entry(
        "influray.scorers.inner_product:InnerProduct", "checkpoint-weighted cosine or dot product (LESS)", reads=VECTORS
    ),
    "whitened": Entry("influray.scorers.whitened:Whitened", "cosine of jointly whitened rows (TAROT)", reads=VECTORS),
    "gram": Entry(
        "influray.scorers.gram:Gram", "through the inverse Gram matrix of plain gradients (TRAK, DsDm)", reads=GRADIENTS
    ),
    "datainf": Entry(
        "influray.scorers.datainf:DataInf", "closed-form inverse Hessian of each LoRA module (DataInf)", reads=GRADIENTS
    ),
    "shampoo": Entry(
        "influray.scorers.shampoo:Shampoo",
        "inverse curvature of each weight, by Shampoo's eigenvectors, corrected",
        reads=GRADIENTS,
    ),
    "landmarks": Entry(
        "influray.scorers.landmarks:Landmarks",
        "exact scores of some rows, carried to all by kernels (Influence Distillation)",
        reads=VECTORS,
    ),
    "influence_model": Entry(
        "influray.scorers.influence_model:InfluenceModel",
        "the same by a linear head on the features (MATES)",
        reads=VECTORS,
    ),
    "surrogate": Entry(
        "influray.scorers.surrogate:Surrogate",
        "the same by a small network on pairs of row and target (NN-CIFT)",
        reads=VECTORS,
    ),
    "grand": Entry("influray.scorers.grand:GraNd", "norm of the plain gradient; asks for no target", reads=GRADIENTS),
    "vog": Entry(
        "influray.scorers.vog:VoG", "spread of the gradient over checkpoints; asks for no target", reads=GRADIENTS
    ),
    "loss_drop": Entry(
        "influray.scorers.loss_drop:LossDrop",
        "loss under the base less that under each task's adapter (CoLoR-Filter)",
        reads=("checkpoint_loss",),
    ),
    "dsir": Entry(
        "influray.scorers.dsir:DSIR", "log importance weight of hashed n-grams, one column a task (DSIR)", reads=COUNTS
    ),
    "bm25": Entry("influray.scorers.bm25:BM25", "the targets as queries, pool rows as documents (BM25)", reads=COUNTS),
    "loss": Entry(
        "influray.scorers.difficulty:MeanLoss",
        "mean answer loss, whatever the targets",
        reads=("loss", "checkpoint_loss", "gradient"),
    ),
    "el2n": Entry(
        "influray.scorers.difficulty:EL2N",
        "mean |softmax - one-hot|, whatever the targets (EL2N)",
        reads=("loss", "checkpoint_loss"),
    ),
    "length": Entry(
        "influray.scorers.difficulty:Length",
        "tokens of the answers, whatever the targets",
        reads=("ngram", "representation", "loss", "checkpoint_loss", "gradient"),
    ),
}


def scorers_of(featurizer: str) -> list[str]:
    """Return the scorers to name beside a featurizer: what it is the cheapest for, and all that compare vectors."""
    return sorted(
        name
        for name, entry in SCORERS.items()
        if featurizer in (entry.reads if entry.reads == VECTORS else entry.reads[:1])
    )


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
    "interaction": Entry(
        "influray.selectors.interaction:Interaction", "mean influence, less where chosen rows have done their part"
    ),
    "strata": Entry(
        "influray.selectors.strata:Strata", "a draw from every level of merit, rare levels first (DEALRec)"
    ),
    "gumbel_top_k": Entry("influray.selectors.gumbel_top_k:GumbelTopK", "a draw with odds by merit (MATES)"),
    "group": Entry(
        "influray.selectors.group:Group", "merit less likeness to what is chosen in the row's cluster (Group-MATES)"
    ),
    "weighted_draw": Entry(
        "influray.selectors.weighted_draw:WeightedDraw",
        "a draw by merit and place in a cluster (sensitivity sampling)",
    ),
    "longest": Entry("influray.selectors.longest:Longest", "most tokens first; needs the rows' tokens"),
    "random": Entry("influray.selectors.random:Random", "a seeded uniform sample"),
}

SEAMS: dict[str, dict[str, Entry]] = {
    "featurizers": FEATURIZERS,
    "projectors": PROJECTORS,
    "scorers": SCORERS,
    "selectors": SELECTORS,
}

KEYS: dict[str, tuple[str, str]] = {  # of a method's name and of its options in a config
    "featurizers": ("features.featurizer", "features.options"),
    "projectors": ("features.projector.name", "features.projector.options"),
    "scorers": ("attribution.scorer", "attribution.options"),
    "selectors": ("method", "options"),
}
GIVEN: dict[str, tuple[str, ...]] = {  # what a class is made with before its options; a featurizer by what it reads
    "checkpoints": ("model", "features_config", "moments", "direction", "device"),
    "adapters": ("model", "device"),
    "base": ("model", "device"),
    "records": (),
    "projectors": ("dimension", "parameters", "seed", "device"),
    "scorers": ("stores",),
    "selectors": (),
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
    "uot": (
        "top_k",
        {"normaliser": "none", "reduction": "transport"},
        "mass by unbalanced optimal transport, arXiv 2602.14696",
    ),
    "knn_uniform": (
        "top_k",
        {"normaliser": "none", "reduction": "neighbours"},
        "near to many targets, KNN-Uniform of TSDS, arXiv 2410.11303",
    ),
    "knn_kde": (
        "top_k",
        {"normaliser": "none", "reduction": "neighbours_by_density"},
        "near to many targets, near-duplicates sharing, KNN-KDE of TSDS, arXiv 2410.11303",
    ),
    "betr": ("top_k", {"normaliser": "none", "reduction": "best_rank"}, "BETR's best rank, arXiv 2507.12466"),
}


def resolve(seam: str, name: str, key: str) -> Any:
    """Return what `name` stands for in the table of `seam`, or the class of a plug-in.

    Raises:
        ConfigError: no such name (with the nearest one), or a plug-in that may not be imported, cannot be, or is no
            class of the seam (influray.plugins); it names `key`.
    """
    table = SEAMS[seam]
    if name in table:
        module, _, attribute = table[name].target.partition(":")
        return getattr(importlib.import_module(module), attribute)
    target = target_of(seam, name)
    if target is None:
        known = sorted({*table, *offered(seam)})
        raise ConfigError(f"{key}: no {seam[:-1]} is called {name!r}{near(name, known)} (known: {', '.join(known)})")
    return load(seam, name, target, key)


def outside_code(seam: str, name: str) -> str | None:
    """Return the "package.module:Class" of a plug-in's name; None for a method of the tables, and what is unknown."""
    known = name in SEAMS[seam] or (seam == "selectors" and name in METHODS)
    return None if known else target_of(seam, name)


def check(seam: str, name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's options as its class takes them. Raises ConfigError as `resolve` and `check_options`."""
    if seam == "featurizers" and name in FEATURIZERS and not options:
        return {}  # all of theirs have defaults, and torch need not be imported to know it
    key, options_key = KEYS[seam]
    given = GIVEN[featurizer_reads(name) if seam == "featurizers" else seam]
    return check_options(resolve(seam, name, key), name, options_key, given, options)


def make(seam: str, name: str, options: Mapping[str, Any], *given: Any) -> Any:
    """Return the method of a table name or plug-in, made of what its seam gives and of its options.

    Raises:
        ConfigError: as `resolve` and `check_options`; or it does not set what the base says it has.
    """
    checked = check(seam, name, options)
    made = resolve(seam, name, KEYS[seam][0])(*given, **checked)
    if seam in ("featurizers", "projectors") and not hasattr(made, "dimension"):
        raise ConfigError(f"{KEYS[seam][0]}: the {seam[:-1]} {name!r} sets no `dimension` in its __init__")
    return made


def featurizer_traits(name: str) -> Traits:
    """Return what must be known of a featurizer before it is made. Raises ConfigError as `resolve`."""
    if name in FEATURIZERS and (traits := FEATURIZERS[name].traits) is not None:
        return traits
    kind = resolve("featurizers", name, KEYS["featurizers"][0])
    return Traits(kind.reads, kind.makes, kind.columns)


def featurizer_reads(name: str) -> Reads:
    """Return what a featurizer is made from (see protocols.Featurizer). Raises ConfigError as `resolve`."""
    return featurizer_traits(name).reads


def resolve_method(name: str) -> tuple[str, dict[str, Any]]:
    """Return (selector, options) of a published method's name, or (name, {}) where it names a selector."""
    if name in METHODS:
        selector, options, _ = METHODS[name]
        return selector, dict(options)
    return name, {}
