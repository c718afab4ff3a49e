"""Scorers that know the whole pool, against explicit float64 versions, and the laws that tell them apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from influray.plugins import permit
from influray.protocols import ArtifactMismatch, ConfigError, FeatureRows
from influray.scorers.datainf import DataInf
from influray.scorers.gram import Gram
from influray.scorers.grand import GraNd
from influray.scorers.options import make_scorer
from influray.scorers.shampoo import Shampoo
from influray.scorers.vog import VoG
from influray.scorers.whitened import Whitened
from influray.store.arrays import add_arrays
from influray.testing.scorers import taken
from tests.features import made_for, make_rows, plain, scaled
from tests.reference.corrected_shampoo import shampoo_influence
from tests.reference.datainf_loop import datainf, datainf_by_inverses
from tests.reference.gradient_variance import variance_of_gradients
from tests.reference.gram_inverse import gram_influence
from tests.reference.whitening import whitened, whitened_cosines

BOUNDS = (0, 5, 12, 20)
MODULES = made_for(2, blocks="module", bounds_K=(BOUNDS, BOUNDS))
FACTORS = ((0, 2, 2), (5, 2, 3), (12, 4, 2))  # a number of the first module and one of the second are left over
WEIGHTS = replace(MODULES, projector="factored", factors_K=(FACTORS, FACTORS))


def scores(scorer, pool: FeatureRows, target: FeatureRows, cuts: int = 3) -> np.ndarray:
    state: dict[str, np.ndarray] = {}
    for number in range(1, scorer.passes + 1):
        total: dict[str, np.ndarray] = {}
        for part in np.array_split(np.arange(len(pool)), cuts):
            add_arrays(total, scorer.sums(number, taken(pool, part), target, state))
        state = scorer.fit(number, total, target, state)
    return scorer.score(pool, target, state)


def weighted(stores, of_checkpoint) -> np.ndarray:
    return sum(weight * of_checkpoint(k) for k, weight in enumerate(stores.weights))


def assert_close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-5) -> None:
    assert np.abs(found - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize(("rows", "dimension"), [(60, 20), (12, 20)], ids=["more rows than numbers", "fewer"])
@pytest.mark.parametrize("seed", range(3))
def test_every_scorer_equals_its_explicit_version(rows, dimension, seed):
    pool, target = make_rows(rows, dimension, seed=seed), make_rows(5, dimension, seed=seed + 10)
    stores = MODULES
    exact = (
        [pool.feature_KBD[k].astype(np.float64) for k in range(2)],
        [target.feature_KBD[k].astype(np.float64) for k in range(2)],
    )
    for damping in (0.1, 3.0):
        expected = weighted(stores, lambda k, d=damping: datainf(plain(pool, k), plain(target, k), BOUNDS, d))
        assert_close(scores(DataInf(stores, damping), pool, target), expected)
    for damping in (0.1, 3.0):
        expected = weighted(
            stores, lambda k, d=damping: shampoo_influence(plain(pool, k), plain(target, k), FACTORS, d)
        )
        assert_close(scores(Shampoo(WEIGHTS, damping), pool, target), expected)
    for ridge in (0.01, 2.0):
        expected = weighted(stores, lambda k, r=ridge: gram_influence(plain(pool, k), plain(target, k), r))
        assert_close(scores(Gram(stores, ridge), pool, target), expected)
    for ridge in (1e-5, 0.1):
        expected = weighted(stores, lambda k, r=ridge: whitened_cosines(exact[0][k], exact[1][k], r))
        assert_close(scores(Whitened(stores, ridge), pool, target), expected, 2e-4)


def test_datainf_is_the_mean_of_inverses_of_single_rows():
    pool, target = make_rows(15, 20), make_rows(3, 20, seed=1)
    for k in range(2):
        loop = datainf(plain(pool, k), plain(target, k), BOUNDS, 0.1)
        np.testing.assert_allclose(loop, datainf_by_inverses(plain(pool, k), plain(target, k), BOUNDS, 0.1), rtol=1e-9)


def test_a_module_without_gradients_adds_nothing():
    pool, target = make_rows(15, 20), make_rows(3, 20, seed=1)
    for k in range(2):
        pool.feature_KBD[k][:, 5:12] = 0
    found = scores(DataInf(MODULES), pool, target)
    without = make_rows(15, 20), make_rows(3, 20, seed=1)
    kept = [*range(5), *range(12, 20)]
    small = [replace(one, feature_KBD=[block[:, kept] for block in one.feature_KBD]) for one in without]
    stores = replace(MODULES, bounds_K=((0, 5, 13),) * 2)
    assert_close(found, scores(DataInf(stores), *small))


def test_with_a_large_damping_shampoo_is_the_dot_product_of_each_weight_over_its_mean_square():
    pool, target = make_rows(40, 20), make_rows(4, 20, seed=1)
    found = scores(Shampoo(WEIGHTS, 1e6), pool, target)
    expected = np.zeros((40, 4))
    for k, weight in enumerate(WEIGHTS.weights):
        for first, p, q in FACTORS:
            g, v = (plain(one, k)[:, first : first + p * q] for one in (pool, target))
            expected += weight * g @ v.T / (1e6 * np.square(g).mean())
    assert_close(found, expected)
    alone = replace(WEIGHTS, factors_K=(((0, 4, 5),),) * 2, weights=(1.0, 0.0))
    found = scores(Shampoo(alone, 1e6), pool, target)
    dot = plain(pool, 0) @ plain(target, 0).T
    assert_close(found * (dot[0, 0] / found[0, 0]), dot, 1e-4)


def test_shampoo_does_not_see_a_rotation_of_either_side():
    pool, target = make_rows(60, 20, 1), make_rows(4, 20, 1, seed=1)
    stores = made_for(1, blocks="module", bounds_K=((0, 20),), factors_K=(((0, 4, 5),),))
    rng = np.random.default_rng(0)
    left, right = (np.linalg.qr(rng.standard_normal((n, n)))[0] for n in (4, 5))
    turned = [
        replace(one, feature_KBD=[(left @ one.feature_KBD[0].reshape(-1, 4, 5) @ right).reshape(-1, 20)])
        for one in (pool, target)
    ]
    assert_close(scores(Shampoo(stores), *turned), scores(Shampoo(stores), pool, target), 1e-4)


def test_shampoo_finds_the_rows_that_help_under_a_direction_that_all_rows_have():
    rng = np.random.default_rng(0)
    pool, target = make_rows(200, 20, 1), make_rows(1, 20, 1, seed=1)
    common, signal = (np.outer(rng.standard_normal(4), rng.standard_normal(5)).reshape(-1) for _ in range(2))
    helping = np.arange(200) % 10 == 0
    rows_BD = 6 * rng.standard_normal((200, 1)) * common + 0.3 * rng.standard_normal((200, 20))
    rows_BD[helping] += signal
    made = [
        replace(one, feature_KBD=[row_BD], facts_KB=[{"norm": np.ones(len(row_BD), np.float32)}])
        for one, row_BD in ((pool, rows_BD), (target, (signal + common)[None]))
    ]
    stores = made_for(1, blocks="module", bounds_K=((0, 20),), factors_K=(((0, 4, 5),),))
    best = np.argsort(-scores(Shampoo(stores), *made)[:, 0])[:20]
    plain_best = np.argsort(-(rows_BD @ (signal + common)))[:20]
    assert helping[best].sum() >= 18
    assert helping[plain_best].sum() <= 10


def test_a_weight_without_gradients_adds_nothing_to_shampoo():
    pool, target = make_rows(15, 20), make_rows(3, 20, seed=1)
    for k in range(2):
        pool.feature_KBD[k][:, 5:11] = 0
    left = replace(WEIGHTS, factors_K=((FACTORS[0], FACTORS[2]),) * 2)
    assert_close(scores(Shampoo(WEIGHTS), pool, target), scores(Shampoo(left), pool, target))


@pytest.mark.parametrize("make", [Gram, DataInf, Shampoo])
def test_the_scale_of_the_gradients_is_a_common_factor_or_none(make):
    pool, target = make_rows(40, 20), make_rows(4, 20, seed=1)
    # lambda follows the pool: A goes as (target / pool), whatever unit the loss has.
    found = scores(make(WEIGHTS), scaled(pool, 8), scaled(target, 2))
    assert_close(found, scores(make(WEIGHTS), pool, target) / 4)


def test_with_a_large_ridge_the_gram_matrix_is_no_matter():
    pool, target = make_rows(40, 20), make_rows(4, 20, seed=1)
    found = scores(Gram(made_for(), 1e7), pool, target)
    for k, weight in enumerate(made_for().weights):
        g = plain(pool, k)
        found = found - weight * g @ plain(target, k).T / (1e7 * (g**2).sum() / 20)
    assert np.abs(found).max() < 1e-4 * np.abs(scores(Gram(made_for(), 1e7), pool, target)).max()


def test_whitening_makes_the_joint_second_moment_the_identity():
    pool, target = make_rows(200, 12, 1), make_rows(30, 12, 1, seed=1)
    scorer = Whitened(made_for(1), 1e-9)
    state = scorer.fit(1, scorer.sums(1, pool, target, {}), target, {})
    joined = np.concatenate([pool.feature_KBD[0], target.feature_KBD[0]]).astype(np.float64)
    white = (joined - state["mean_0"]) @ state["whitener_0"]
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(12), atol=1e-5)
    reference = np.concatenate(whitened(joined[:200], joined[200:], 1e-9))
    np.testing.assert_allclose(white, reference, atol=1e-4)


def test_whitened_scores_do_not_see_a_linear_map_of_all_rows():
    generator = np.random.default_rng(0)
    pool, target = make_rows(80, 12, 1), make_rows(4, 12, 1, seed=1)
    stretch = generator.standard_normal((12, 12)) / 12
    moved = [replace(one, feature_KBD=[(one.feature_KBD[0] @ stretch + 0.3)]) for one in (pool, target)]
    scorer = Whitened(made_for(1), 1e-12)
    np.testing.assert_allclose(scores(scorer, *moved), scores(scorer, pool, target), atol=2e-3)


def test_norms_do_not_matter_to_whitened_scores():
    pool, target = make_rows(40, 20), make_rows(4, 20, seed=1)
    found = scores(Whitened(made_for()), scaled(pool, 5), target)
    assert np.array_equal(found, scores(Whitened(made_for()), pool, target))


def test_vog_is_its_definition_within_each_source():
    pool = make_rows(24, 7, 4, groups=("a", "b", "c"))
    pool.group_B[5] = "alone"
    found = scores(VoG(made_for(4)), pool, make_rows(2, 7, 4))
    expected = variance_of_gradients([plain(pool, k) for k in range(4)], pool.group_B)
    assert found.shape == (24, 1)
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-5)
    assert found[5, 0] == 0


def test_vog_of_gradients_that_never_change_is_zero_and_of_scaled_ones_the_same():
    pool, target = make_rows(12, 7, 3), make_rows(2, 7, 3)
    still = replace(pool, feature_KBD=[pool.feature_KBD[0]] * 3, facts_KB=[pool.facts_KB[0]] * 3)
    assert not scores(VoG(made_for(3)), still, target).any()
    assert_close(scores(VoG(made_for(3)), scaled(pool, 16), target), scores(VoG(made_for(3)), pool, target))


def test_grand_is_the_weighted_gradient_norm_of_any_direction():
    pool, stores = make_rows(12, 7, 3), made_for(3, direction="adam")
    expected = weighted(stores, lambda k: pool.facts_KB[k]["grad_norm"].astype(np.float64))
    np.testing.assert_allclose(scores(GraNd(stores), pool, make_rows(2, 7, 3))[:, 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("scorer", "changes", "said"),
    [
        (
            "gram",
            {"direction": "adam"},
            r"'gram' needs plain gradients.*'adam' direction; set features\.direction: sgd",
        ),
        ("datainf", {"direction": "sign"}, r"'datainf' needs plain gradients.*set features\.direction: sgd"),
        ("datainf", {}, r"'datainf' needs a block of features for each LoRA module.*set features\.blocks: module"),
        ("shampoo", {"direction": "adam"}, r"'shampoo' needs plain gradients.*set features\.direction: sgd"),
        ("shampoo", {}, r"'shampoo' needs a block of features for each LoRA module.*set features\.blocks: module"),
        (
            "shampoo",
            {"blocks": "module", "projector": "sparse_jl"},
            r"'shampoo' needs the gradient of a layer as a smaller matrix.*'sparse_jl'.*set features\.projector\.name: fac",
        ),
        (
            "shampoo",
            {
                "blocks": "module",
                "projector": "package.module:Class",
                "bounds_K": ((0, 20),) * 2,
                "factors_K": ((), ()),
            },
            r"'package\.module:Class' makes one row of numbers of it",
        ),
        ("vog", {"direction": "adam"}, r"'vog' needs plain gradients.*set features\.direction: sgd"),
        ("vog", {"matrices": "each"}, r"'vog' compares.*set features\.projector\.matrices: one"),
        ("vog", {}, r"'vog' needs datastores of 3 checkpoints or more, and there are 2; set warmup\.epochs"),
    ],
)
def test_stores_that_cannot_carry_a_scorer_are_refused_with_those_that_can(scorer, changes, said):
    with pytest.raises(ArtifactMismatch, match=said):
        make_scorer(scorer, made_for(2, **changes), {})


def test_a_store_of_something_else_has_no_gradients():
    elsewhere = made_for(2, featurizer="package.module:Class", makes="vectors", columns=("norm",))
    for name in ("grand", "gram"):
        with pytest.raises(ArtifactMismatch, match=r"needs gradients.*module:Class' features.*featurizer: gradient"):
            make_scorer(name, elsewhere, {})
    assert make_scorer("whitened", elsewhere, {})


@pytest.mark.parametrize(
    ("scorer", "options", "said"),
    [
        ("gram", {"ridge": 0}, r"attribution\.options\.ridge: found 0, expected a number above 0"),
        ("whitened", {"ridge": "small"}, r"attribution\.options\.ridge: found 'small'"),
        ("whitened", {"ridge": float("nan")}, r"attribution\.options\.ridge: found nan"),
        ("shampoo", {"damping": 0}, r"attribution\.options\.damping: found 0, expected a number above 0"),
        ("datainf", {"damping": True}, r"attribution\.options\.damping: found True"),
        ("datainf", {"dampin": 1}, r"attribution\.options\.dampin: .*did you mean 'damping'\? \(known: damping\)"),
        ("grand", {"ridge": 1}, r"attribution\.options\.ridge: 'grand' has no such option \(it has none\)"),
    ],
)
def test_wrong_options_are_named_by_their_key(scorer, options, said):
    with pytest.raises(ConfigError, match=said):
        make_scorer(scorer, WEIGHTS, options)


def test_from_a_config_as_much_is_refused_as_it_tells():
    from influray.config import parse_config
    from influray.scorers.options import expected_stores

    def stores(**warmup):
        features = {"direction": "sgd", "projector": {"matrices": "one"}}
        tree = {"model": {"base": "m"}, "data": {"pool": "p", "targets": {"a": "t"}}, "features": features}
        return expected_stores(
            parse_config({**tree, "warmup": warmup, "selectors": [{"name": "s", "method": "sum", "budget": 1}]})
        )

    with pytest.raises(ArtifactMismatch, match="and there are 2"):
        make_scorer("vog", stores(epochs=2), {})
    for warmup in ({"epochs": 3}, {"epochs": 1, "steps": 500}):
        assert make_scorer("vog", stores(**warmup), {})


def test_a_plug_in_may_require_an_option_or_take_any(monkeypatch):
    class Strict(GraNd):
        def __init__(self, stores, power):
            super().__init__(stores)

    class Loose(GraNd):
        def __init__(self, stores, **options):
            super().__init__(stores)

    monkeypatch.setattr("influray.scorers.grand.Strict", Strict, raising=False)
    monkeypatch.setattr("influray.scorers.grand.Loose", Loose, raising=False)
    permit(["influray.scorers.grand:Strict", "influray.scorers.grand:Loose"])
    with pytest.raises(
        ConfigError, match=r"attribution\.options\.power: required by 'influray\.scorers\.grand:Strict'"
    ):
        make_scorer("influray.scorers.grand:Strict", made_for(), {})
    assert make_scorer("influray.scorers.grand:Strict", made_for(), {"power": 2})
    assert make_scorer("influray.scorers.grand:Loose", made_for(), {"anything": 2})
