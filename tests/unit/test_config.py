"""A wrong config is one readable message with the dotted key; a right one is frozen and complete."""

from __future__ import annotations

import pytest
import yaml

from influray.config import Config, dump_config, load_config, parse_config, parse_override
from influray.plugins import permit
from influray.protocols import ConfigError
from influray.registry import resolve


def tree(**changes) -> dict:
    base = {
        "model": {"base": "a-model"},
        "data": {"pool": "pool.jsonl", "targets": {"sums": "t.jsonl"}},
        "selectors": [{"name": "bids", "method": "bids", "budget": 0.05}],
    }
    return {**base, **changes}


def write(tmp_path, value) -> str:
    path = tmp_path / "c.yaml"
    path.write_text(value if isinstance(value, str) else yaml.safe_dump(value))
    return str(path)


WRONG = [
    ({"modle": {}}, "modle: unknown key; did you mean 'model'?"),
    ({"model": {"base": "x", "lora": {"rank": 8}}}, "model.lora.rank: unknown key"),
    ({"model": {"base": "x", "lora": {"drop_out": 0}}}, "did you mean 'dropout'?"),
    ({"model": {"base": "x", "lora": {"r": 0}}}, "model.lora.r: "),
    ({"model": {"base": "x", "dtype": "fp8"}}, "model.dtype: "),
    ({"model": {}}, "model.base: required"),
    ({"data": {"pool": [], "targets": {"a": "t"}}}, "data.pool: "),
    ({"data": {"pool": "p", "targets": {}}}, "data.targets: "),
    ({"data": {"pool": "p", "targets": {"../up": "t"}}}, "data.targets.../up"),
    ({"data": {"pool": "p", "targets": {"a": {"files": "t", "limt": 3}}}}, "did you mean 'limit'?"),
    ({"data": {"pool": "p", "targets": {"a": {"files": "t", "role": "avoids"}}}}, "data.targets.a.role: "),
    ({"data": {"pool": "p", "targets": {"a": {"files": "t", "role": "avoid"}}}}, "targets: no task is sought"),
    (
        {"data": {"pool": "p", "targets": {"a": {"files": "t", "role": "protect", "test": "u"}, "b": "t"}}},
        "targets: only tasks to protect or to avoid have a `test`",
    ),
    ({"selectors": []}, "selectors: "),
    ({"selectors": [{"name": "b", "method": "bids", "budget": 0}]}, "selectors.0.budget: must be a number of examples"),
    (
        {"selectors": [{"name": "b", "method": "bids", "budget": 1.5}]},
        "selectors.0.budget: must be a number of examples",
    ),
    ({"selectors": [{"name": "b", "method": "bids", "budget": True}]}, "selectors.0.budget: must be"),
    ({"selectors": [{"name": "b", "method": "bids", "bugdet": 1}]}, "did you mean 'budget'?"),
    ({"selectors": [{"name": "a/b", "method": "bids", "budget": 1}]}, "selectors.0.name: "),
    ({"selectors": [{"name": "full", "method": "bids", "budget": 1}]}, "kept for the whole pool"),
    ({"selectors": [{"name": "b", "method": "x", "budget": 1}] * 2}, "used more than once"),
    ({"tune": {"steps": 3, "tokens": 100}}, "tune: steps and tokens both say when to stop"),
    ({"tune": {"tokens": 0}}, "tune.tokens"),
    ({"tune": {"selections": ["nobody"]}}, "tune.selections: no selector is called 'nobody'"),
    ({"warmup": {"epochs": "many"}}, "warmup.epochs: "),
    ({"resources": {"workers": 0}}, "resources.workers"),
]


def test_each_checkpoint_has_a_projection_of_its_own_unless_one_is_asked_for():
    from influray.config import FeaturesConfig

    each, one = (FeaturesConfig.model_validate({"projector": {"seed": 3, "matrices": m}}) for m in ("each", "one"))
    seeds = [each.at(k).projector.seed for k in (1, 2, 3)]
    assert seeds[0] == 3
    assert len(set(seeds)) == 3
    assert [one.at(k).projector.seed for k in (1, 2, 3)] == [3] * 3
    assert each.at(1) == one.at(1), "the first checkpoint's rows are the same either way, and are not made again"
    last = FeaturesConfig.model_validate({"projector": {"seed": 2**63 - 1}})
    assert 0 <= last.at(9).projector.seed < 2**63


@pytest.mark.parametrize(("written", "found"), [("on", "on"), ("off", "off"), ("auto", "auto"), ("'on'", "on")])
def test_packing_is_on_or_off_though_yaml_takes_these_for_booleans(written, found, tmp_path):
    text = yaml.safe_dump(tree()) + f"features: {{packing: {written}}}\n"
    config = load_config(write(tmp_path, text))
    assert config.features.packing == found
    assert load_config(write(tmp_path, dump_config(config))) == config
    with pytest.raises(ConfigError, match="features.packing"):
        load_config(write(tmp_path, tree(features={"packing": "always"})))


@pytest.mark.parametrize(("changes", "message"), WRONG)
def test_a_wrong_config_is_one_message_with_its_dotted_key(changes, message, tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, tree(**changes)))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "validation error" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not YAML"), ("- 1", "a config is a mapping"), ("", "a config is a mapping")]
)
def test_a_file_that_is_no_config_says_so(text, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, text))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        load_config(tmp_path / "absent.yaml")


def test_a_config_survives_writing_and_reading(tmp_path):
    config = parse_config(tree(tune={"steps": 30, "seeds": [0, 1]}, attribution={"weights": [0.5, 0.5]}))
    assert load_config(write(tmp_path, dump_config(config))) == config


def test_a_budget_of_one_is_an_example_and_one_point_zero_is_the_pool(tmp_path):
    for budget, kind in ((1, int), (1.0, float), (250, int), (0.25, float)):
        config = parse_config(tree(selectors=[{"name": "b", "method": "bids", "budget": budget}]))
        assert type(config.selectors[0].budget) is kind
        again = load_config(write(tmp_path, dump_config(config)))
        assert type(again.selectors[0].budget) is kind


def test_overrides_reach_lists_and_new_sections(tmp_path):
    path = write(tmp_path, tree())
    overrides = dict(
        map(parse_override, ["selectors.0.budget=7", "warmup.epochs=2", "tune.steps=3", "model.lora.targets=[a, b]"])
    )
    config = load_config(path, overrides)
    assert config.selectors[0].budget == 7
    assert config.warmup.epochs == 2
    assert config.tune is not None
    assert config.tune.steps == 3
    assert config.model.lora.targets == ("a", "b")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("selectors.3.budget=1", "has 1 entries"),
        ("data.pool.x=1", "plain value"),
        ("novalue", "expected key=value"),
        ("a=[", "not YAML"),
    ],
)
def test_a_wrong_override_is_refused(override, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_config(write(tmp_path, tree()), dict([parse_override(override)]))


def test_a_config_cannot_be_changed():
    config = parse_config(tree())
    with pytest.raises(ValueError, match="frozen"):
        config.run_dir = "x"  # type: ignore[misc]


def test_every_field_is_reachable_by_the_documented_sections():
    assert set(Config.model_fields) == {
        "run_dir", "model", "data", "cascade", "warmup", "features", "attribution", "selectors", "tune", "evaluation",
            "validation", "resources",
    }  # fmt: skip


def test_an_unknown_method_suggests_the_near_one():
    with pytest.raises(
        ConfigError, match=r"selectors.0.method: no selector is called 'ballanced'; did you mean 'balanced'\?"
    ):
        resolve("selectors", "ballanced", "selectors.0.method")


def test_a_plugin_that_cannot_be_imported_says_why():
    permit(["no_such_package.x:Y", "influray.config:Nope"])
    with pytest.raises(ConfigError, match="cannot be imported"):
        resolve("selectors", "no_such_package.x:Y", "selectors.0.method")
    with pytest.raises(ConfigError, match="has no 'Nope'"):
        resolve("selectors", "influray.config:Nope", "selectors.0.method")
