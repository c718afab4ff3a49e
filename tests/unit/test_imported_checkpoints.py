"""A config that lists the user's own checkpoints: what is settled, and refused, before anything starts."""

from __future__ import annotations

import json
import logging
import shutil
from typing import Any

import pytest
import torch
import yaml

from influray import pipeline
from influray.config import Config, dump_config, load_config, parse_config
from influray.model.checkpoints import load_checkpoint
from influray.model.imported import settle_imported
from influray.protocols import ConfigError
from influray.runtime.training_worker import TrainingJob, carry_out
from tests.tiny import write_tiny_model
from tests.unit.test_imported_adapters import changed, saved


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base"))


def config(base, *adapters, lora: Any = None, tune: Any = False, optimizer: Any = None, **more) -> Config:
    (base.parent / "pool.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    listed = [{"adapter": str(one), "mean_learning_rate": 1e-3, "optimizer": optimizer} for one in adapters]
    tree = {
        "run_dir": str(base.parent / "run"),
        "model": {"base": str(base), **({"lora": lora} if lora is not None else {})},
        "data": {"root": str(base.parent), "pool": ["pool.jsonl"], "targets": {"t": "pool.jsonl"}},
        "warmup": {"checkpoints": listed},
        "features": {"direction": "sgd"},
        "selectors": [{"name": "bids", "method": "bids", "budget": 1}],
        **({"tune": {}} if tune else {}),
        **more,
    }
    return parse_config(tree)


def test_what_model_lora_leaves_out_is_taken_from_the_adapter_and_recorded(base, tmp_path):
    folder = saved(tmp_path / "a", r=6, lora_alpha=9, lora_dropout=0.25, target_modules=["o_proj", "q_proj"])
    lora = settle_imported(config(base, folder)).model.lora
    assert lora.model_dump() == {"r": 6, "alpha": 9, "dropout": 0.25, "targets": ("o_proj", "q_proj")}
    partly = settle_imported(config(base, folder, lora={"r": 6, "dropout": 0})).model.lora
    assert partly.model_dump() == {"r": 6, "alpha": 9, "dropout": 0, "targets": ("o_proj", "q_proj")}
    scaled = settle_imported(config(base, saved(tmp_path / "rs", r=4, lora_alpha=8, use_rslora=True))).model.lora
    assert scaled.alpha / scaled.r == pytest.approx(8 / 4**0.5), "the scaling of rsLoRA"
    expression = saved(tmp_path / "re", target_modules=r".*self_attn\.(q|k)_proj")
    assert settle_imported(config(base, expression)).model.lora.targets == ("k_proj", "q_proj")


@pytest.mark.parametrize(
    "kind", ["plain", "two shapes", "rslora", "re", "head", "all linear", "excluded", "one layer", "named in vain"]
)
def test_a_settled_config_is_settled_for_good(kind, base, tmp_path):
    """`influray run RUN/config.yaml` reads what was recorded, in which every field is given."""
    folders = [
        saved(
            tmp_path / "a",
            **{
                "rslora": {"use_rslora": True},
                "re": {"target_modules": r".*self_attn\.(q|k)_proj"},
                "head": {"target_modules": ["q_proj", "lm_head"]},
                "all linear": {"target_modules": "all-linear"},
                "excluded": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
                "one layer": {"layers_to_transform": [0], "layers_pattern": "layers"},
                "named in vain": {"target_modules": ["q_proj", "no_such_layer"]},
            }.get(kind, {}),
        )
    ]
    if kind == "two shapes":
        folders.append(saved(tmp_path / "b", r=2, target_modules=["down_proj"]))
    settled = settle_imported(config(base, *folders))
    (tmp_path / "config.yaml").write_text(dump_config(settled))
    assert settle_imported(load_config(tmp_path / "config.yaml")) == settled


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"r": 8}, r"model\.lora\.r: 8, and the adapter .* has 4"),
        ({"r": 128}, r"model\.lora\.r: 128, and the adapter .* has 4"),
        ({"alpha": 16}, r"model\.lora\.alpha: 16, and the adapter .* has 8"),
        ({"targets": ["q_proj"]}, r"model\.lora\.targets: q_proj leave out .*v_proj"),
        ({"targets": ["q_proj", "v_proj", "k_proj"]}, "no layer that ends in 'k_proj'"),
    ],
)
def test_a_model_lora_that_is_not_the_adapters_is_refused_with_both_values(lora, message, base, tmp_path):
    with pytest.raises(ConfigError, match=message):
        settle_imported(config(base, saved(tmp_path / "a"), lora=lora))


def test_what_tune_should_train_must_be_told_where_adapters_do_not_tell(base, tmp_path):
    first, second = saved(tmp_path / "a"), saved(tmp_path / "b", r=2)
    patterned = saved(tmp_path / "c", rank_pattern={"q_proj": 2})
    settle_imported(config(base, first, second))
    with pytest.raises(ConfigError, match="differ in r, so what `tune` should train"):
        settle_imported(config(base, first, second, tune=True))
    with pytest.raises(ConfigError, match="use rank_pattern, which model.lora cannot express"):
        settle_imported(config(base, patterned, tune=True))
    given = {"r": 2, "alpha": 8, "dropout": 0, "targets": ["q_proj", "v_proj"]}
    assert settle_imported(config(base, first, second, tune=True, lora=given)).model.lora.r == 2


def test_the_same_adapter_twice_is_refused_whatever_its_path(base, tmp_path):
    first, other = saved(tmp_path / "a"), saved(tmp_path / "b", seed=1)
    shutil.copytree(first, tmp_path / "copy")
    changed(tmp_path / "copy", base_model_name_or_path="elsewhere")
    for again in (first, tmp_path / "copy"):
        with pytest.raises(ConfigError, match=r"checkpoints\.2\.adapter: .* same adapter.*checkpoints\.0"):
            settle_imported(config(base, first, other, again))
    settle_imported(config(base, first, changed(tmp_path / "copy", lora_alpha=16)))  # another model


def test_a_base_of_another_name_is_warned_of(base, tmp_path, caplog):
    named = changed(saved(tmp_path / "a"), base_model_name_or_path="somebody/other-model")
    settle_imported(config(base, named))
    assert "was trained on somebody/other-model" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        settle_imported(config(base, changed(named, base_model_name_or_path=f"hub/{base.name}")))
    assert not caplog.text


@pytest.mark.parametrize("verb", [pipeline.plan, pipeline.run])
def test_plan_and_run_refuse_before_they_write_anything(verb, base, tmp_path):
    good, pissa = saved(tmp_path / "a"), changed(saved(tmp_path / "b", seed=1), init_lora_weights="pissa")
    (tmp_path / "pointer.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "optimizer_0").mkdir()
    (tmp_path / "optimizer_0" / ".metadata").write_bytes(b"a pickle that is not opened")
    for wrong, message in (
        (config(base, good, pissa), r"warmup\.checkpoints\.1\.adapter: .*pissa"),
        (config(base, tmp_path / "none"), r"warmup\.checkpoints\.0\.adapter: .*there is no such folder"),
        (config(base, good, optimizer=str(tmp_path / "none.pt")), r"checkpoints\.0\.optimizer: .*no such file"),
        (config(base, good, optimizer=str(tmp_path / "pointer.pt")), "git lfs pull"),
        (config(base, good, optimizer=str(tmp_path / "empty.pt")), "is empty"),
        (config(base, good, optimizer=str(tmp_path / "optimizer_0")), "dcp_to_torch"),
        (config(base, good, good), "same adapter"),
        (config(base, good, features={"direction": "adam"}), r"checkpoints\.0\.optimizer: not given, and .*adam"),
    ):
        with pytest.raises(ConfigError, match=message):
            verb(wrong, run_dir=tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_defaults_stay_unset_through_overrides(base, tmp_path):
    from influray.runs import resolve

    folder = saved(tmp_path / "a")
    settled = settle_imported(resolve(config(base, folder), {"selectors.0.budget": 2}).config)
    assert settled.model.lora.r == 4


def test_a_config_without_imports_is_left_alone(base):
    plain = config(base)
    assert settle_imported(plain) is plain


def imported(base, tmp_path, checkpoint, optimizer, **more):
    parsed = settle_imported(config(base, checkpoint, optimizer=str(optimizer), **more))
    job = TrainingJob("warmup", parsed.model_dump(mode="json"), "", [], str(tmp_path / "warmup"), 0, {"base": "x"})
    return carry_out(job, "cpu", None, 1)


def optimizer(path, folder, step, bitsandbytes=False):
    """Write an optimizer state of an adapter, as the numbers of named_parameters()."""
    from safetensors.torch import load_file

    generator, states = torch.Generator().manual_seed(3), {}
    names = ("state1", "state2") if bitsandbytes else ("exp_avg", "exp_avg_sq")
    tensors = [t for name, t in load_file(folder / "adapter_model.safetensors").items() if ".lora_" in name]
    for number, tensor in enumerate(tensors):  # all of one shape but for A and B, which alternate in both orders
        first, second = (f(tensor.shape, generator=generator) for f in (torch.randn, torch.rand))
        states[number] = {names[0]: first, names[1]: second, "step": step}
    group = {"params": list(states), "betas": (0.9, 0.999), "eps": 1e-8}
    path.parent.mkdir(exist_ok=True)
    torch.save({"state": states, "param_groups": [group]}, path)
    return path


def test_an_adapter_of_the_head_and_states_of_bitsandbytes_are_imported(base, tmp_path):
    folder = saved(tmp_path / "a", target_modules=["lm_head"])
    state = optimizer(tmp_path / "optimizer.pt", folder, 7, bitsandbytes=True)
    manifest = imported(base, tmp_path, folder, state)
    assert (manifest["imported"], manifest["checkpoints"]) == (True, 1)
    checkpoint = load_checkpoint(tmp_path / "warmup" / "checkpoint-1")
    assert checkpoint.moments().step == 7
    assert [name for name, _ in checkpoint.parameters] == [
        f"base_model.model.lm_head.lora_{x}.default.weight" for x in "AB"
    ]


@pytest.mark.parametrize(
    ("beside_adapter", "beside_optimizer", "scaler", "step", "message"),
    [
        (7, None, False, 7, ""),
        (None, None, False, 7, ""),
        (None, 7, False, 7, ""),
        (7, 7, False, 7, ""),
        (7, 7, True, 5, ""),  # two steps overflowed
        (7, None, True, 5, ""),
        (8, None, False, 7, "step 7, and trainer_state.json beside the adapter tells of step 8"),
        (None, 8, False, 7, "beside the optimizer tells of step 8"),
        (7, 8, False, 7, "beside the optimizer tells of step 8"),
        (7, 7, False, 5, "of step 5"),
        (7, 7, True, 9, "of step 9"),
        (9, 7, True, 7, "beside the adapter tells of step 9"),
        ("seven", None, False, 7, "global_step is seven"),
    ],
)
def test_moments_of_another_step_than_the_adapters_are_found(
    beside_adapter, beside_optimizer, scaler, step, message, base, tmp_path
):
    from influray.model.imported import require_one_step

    folder, other = saved(tmp_path / "a"), tmp_path / "b"
    state = optimizer(other / "optimizer.pt", folder, step)
    for place, told in ((folder, beside_adapter), (other, beside_optimizer)):
        if told is not None:
            (place / "trainer_state.json").write_text(json.dumps({"global_step": told, "log_history": []}))
    if scaler:
        (other / "scaler.pt").write_bytes(b"not opened")
    one = config(base, folder, optimizer=str(state)).warmup.checkpoints[0]
    if message:
        with pytest.raises(ConfigError, match=rf"warmup\.checkpoints\.0.*{message}"):
            require_one_step(one, step, "warmup.checkpoints.0")
    else:
        require_one_step(one, step, "warmup.checkpoints.0")


def test_the_import_compares_the_steps(base, tmp_path):
    folder = saved(tmp_path / "a")
    (folder / "trainer_state.json").write_text('{"global_step": 8}')
    with pytest.raises(ConfigError, match="tells of step 8"):
        imported(base, tmp_path, folder, optimizer(tmp_path / "optimizer.pt", folder, 7))
    assert not (tmp_path / "warmup").exists()


def test_all_linear_that_an_adapter_is_not_is_refused_where_the_model_is_known(base, tmp_path):
    everything = {"lora": {"targets": ["all-linear"]}}
    folder = saved(tmp_path / "a")
    state = optimizer(tmp_path / "optimizer.pt", folder, 7)
    with pytest.raises(ConfigError, match="'all-linear', and the imported adapter leaves out model.layers.0.mlp.down"):
        imported(base, tmp_path, folder, state, **everything)
    folder = saved(tmp_path / "b", target_modules="all-linear")
    parsed = settle_imported(config(base, folder, **everything))
    job = TrainingJob("warmup", parsed.model_dump(mode="json"), "", [], str(tmp_path / "all"), 0, {"base": "x"})
    assert carry_out(job, "cpu", None, 1)["imported"]


def test_the_example_of_the_docs_is_a_config():
    from tests.unit.test_imported_optimizers import DOCS

    text = DOCS.read_text().split("```yaml\n")[1].split("```")[0]
    listed = yaml.safe_load(text)["warmup"]["checkpoints"]
    assert [set(one) for one in listed] == [{"adapter", "optimizer", "mean_learning_rate"}] * 2
