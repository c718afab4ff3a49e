"""Checkpoints on disk, and the user's own adapter and optimizer state in the forms that trainers write."""

from __future__ import annotations

import json
import os
from typing import Any, cast

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

from influray.config_model import ImportedCheckpoint
from influray.model.checkpoints import (
    AdamMoments,
    import_checkpoint,
    load_checkpoint,
    save_adapter,
    save_checkpoint,
    trained_parameters,
)
from influray.model.loading import attach_adapter
from influray.model.optimizer_state import read_moments, strip_wrappers, write_moments
from influray.protocols import ArtifactMismatch, ConfigError, DamagedArtifact
from influray.store.artifact import hash_file, write_sealed
from tests.tiny import tiny_llama


def adapted(seed: int = 0, **changes):
    config = LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj", "o_proj"], **changes})
    base = tiny_llama(seed=0)
    torch.manual_seed(seed)
    model = get_peft_model(base, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)
    return model


def random_moments(model, seed: int = 0) -> AdamMoments:
    generator = torch.Generator().manual_seed(seed)
    shapes = trained_parameters(model)
    exp_avg = {name: torch.randn(shape, generator=generator) for name, shape in shapes}
    exp_avg_sq = {name: torch.rand(shape, generator=generator) for name, shape in shapes}
    return AdamMoments(exp_avg, exp_avg_sq, 0.9, 0.99, 1e-7, 42)


def assert_same(found: AdamMoments, expected: AdamMoments) -> None:
    assert (found.beta1, found.beta2, found.epsilon, found.step) == (
        expected.beta1,
        expected.beta2,
        expected.epsilon,
        expected.step,
    )
    for kind in ("exp_avg", "exp_avg_sq"):
        assert list(getattr(found, kind)) == list(getattr(expected, kind))
        for name, tensor in getattr(expected, kind).items():
            assert torch.equal(getattr(found, kind)[name], tensor), name


def save(folder, model, **changes):
    facts = {"epoch": 1, "mean_learning_rate": 1e-4, "rows": 24, "losses": [2.0, 1.5], **changes}
    return save_checkpoint(folder, model, random_moments(model), **facts)


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path):
    model = adapted()
    saved = save(tmp_path / "checkpoint-1", model)
    found = load_checkpoint(tmp_path / "checkpoint-1")
    assert_same(found.moments(), random_moments(model))
    assert found.mean_learning_rate == 1e-4
    assert found.parameters == trained_parameters(model)
    assert found.state["losses"] == [2.0, 1.5]
    assert found.digest == saved.digest
    ids = torch.arange(5, 25)[None]
    loaded = attach_adapter(tiny_llama(seed=0), found.adapter)
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_keys_of_the_moments_are_those_of_the_contract(tmp_path):
    model = adapted()
    save(tmp_path / "c", model)
    keys = set(load_file(tmp_path / "c" / "moments.safetensors"))
    names = [name for name, _ in trained_parameters(model)]
    assert keys == {f"{kind}/{name}" for kind in ("exp_avg", "exp_avg_sq") for name in names}


def test_nothing_on_disk_follows_the_order_of_a_set_or_of_hashing(tmp_path):
    model = adapted()
    config: Any = model.peft_config["default"]
    assert isinstance(config.target_modules, set)  # whose order differs between processes
    first, second = save(tmp_path / "a", model), save(tmp_path / "b", adapted())
    assert json.loads((first.adapter / "adapter_config.json").read_text())["target_modules"] == [
        "o_proj",
        "q_proj",
        "v_proj",
    ]
    with safe_open(first.folder / "moments.safetensors", framework="pt") as file:
        assert len(file.metadata()) == 1, "safetensors writes several entries in the order of a hash table"
    for path in first.folder.rglob("*.*"):
        assert path.read_bytes() == (second.folder / path.relative_to(first.folder)).read_bytes(), path


def test_digest_is_of_content_and_not_of_paths_or_losses(tmp_path):
    model = adapted()
    first = save(tmp_path / "a", model)
    again = save(tmp_path / "b", model, losses=[9.0])
    path = again.adapter / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "elsewhere"}))
    with pytest.raises(DamagedArtifact, match=r"adapter_config\.json: not what was committed"):
        load_checkpoint(tmp_path / "b")
    files = {**again.state["files"], "adapter/adapter_config.json": hash_file(path)}
    write_sealed(again.folder / "state.json", {**again.state, "files": files})
    assert load_checkpoint(tmp_path / "b").digest == first.digest
    assert save(tmp_path / "c", model, mean_learning_rate=2e-4).digest != first.digest
    assert save(tmp_path / "d", adapted(seed=1)).digest != first.digest
    assert save(tmp_path / "e", adapted(lora_alpha=99)).digest != first.digest


def test_saving_over_an_older_checkpoint_replaces_all_of_it(tmp_path):
    save(tmp_path / "c", adapted(seed=1))
    (tmp_path / "c" / "left_over").write_text("x")
    save(tmp_path / "c", adapted())
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert not (tmp_path / "c" / "left_over").exists()


def test_a_save_that_fails_leaves_the_older_checkpoint_and_nothing_else(tmp_path):
    model = adapted()
    before = save(tmp_path / "c", model).digest
    with pytest.raises(TypeError):
        save(tmp_path / "c", model, losses=[object()])
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    assert load_checkpoint(tmp_path / "c").digest == before


@pytest.mark.parametrize("damage", ["missing", "state", "schema", "weights", "moments"])
def test_a_damaged_checkpoint_is_refused_with_the_mend(tmp_path, damage):
    folder = tmp_path / "c"
    if damage != "missing":
        save(folder, adapted())
    if damage == "state":
        (folder / "state.json").write_text("{")
    elif damage == "schema":
        (folder / "state.json").write_text('{"schema": 0}')
    elif damage == "weights":
        (folder / "adapter" / "adapter_model.safetensors").unlink()
    elif damage == "moments":
        path = folder / "moments.safetensors"
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ArtifactMismatch, match=str(folder)):
        load_checkpoint(folder).moments()


# Below: what other trainers write.


def adam_after_two_steps(model, groups=None):
    optimizer = torch.optim.AdamW(groups(model) if groups else [p for p in model.parameters() if p.requires_grad])
    for _ in range(2):
        model(input_ids=torch.arange(5, 25)[None], labels=torch.arange(5, 25)[None]).loss.backward()
        optimizer.step()
    states = {name: optimizer.state[p] for name, p in model.named_parameters() if p.requires_grad}
    expected = AdamMoments(
        {n: s["exp_avg"] for n, s in states.items()},
        {n: s["exp_avg_sq"] for n, s in states.items()},
        0.9,
        0.999,
        1e-8,
        2,
    )
    return optimizer, expected


def named(optimizer, model) -> dict:
    """The name-keyed form that FSDP writes."""
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in optimizer.param_groups]
    return {"state": {names[id(p)]: s for p, s in optimizer.state.items()}, "param_groups": groups}


def test_moments_that_transformers_trainer_wrote_are_read_by_name(tmp_path):
    model = adapted()
    data = [{"input_ids": torch.arange(5, 15) + i, "labels": torch.arange(5, 15) + i} for i in range(4)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=2, save_steps=2, report_to="none", disable_tqdm=True, use_cpu=True
    )
    trainer: Any = Trainer(model=model, args=arguments, train_dataset=cast(Any, data))
    trainer.train()
    states = {name: trainer.optimizer.state[p] for name, p in model.named_parameters() if p.requires_grad}
    imported = ImportedCheckpoint(
        adapter=str(tmp_path / "checkpoint-2"),
        optimizer=str(tmp_path / "checkpoint-2" / "optimizer.pt"),
        mean_learning_rate=3e-5,
    )
    checkpoint = import_checkpoint(imported, trained_parameters(model), tmp_path / "out", epoch=2)
    moments = checkpoint.moments()
    assert moments.step == 2
    assert (checkpoint.mean_learning_rate, checkpoint.state["epoch"]) == (3e-5, 2)
    for name, state in states.items():
        assert torch.equal(moments.exp_avg[name], state["exp_avg"])
        assert torch.equal(moments.exp_avg_sq[name], state["exp_avg_sq"])
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        loaded = attach_adapter(tiny_llama(seed=0), checkpoint.adapter)
        assert torch.equal(loaded(input_ids=ids).logits, model.eval()(input_ids=ids).logits)


def test_integer_keys_in_one_group_follow_named_parameters(tmp_path):
    model = adapted()
    optimizer, expected = adam_after_two_steps(model)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")  # as accelerate's save_state does
    assert_same(read_moments(tmp_path / "optimizer.bin", trained_parameters(model)), expected)


def test_integer_keys_in_trainers_two_groups_put_parameters_without_decay_last(tmp_path):
    model = adapted(bias="lora_only")  # biases are what Trainer does not decay
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is None and module.out_features == 32:
            module.bias = torch.nn.Parameter(torch.zeros(32))

    def groups(model):
        pairs = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        decayed, plain = [p for n, p in pairs if "bias" not in n], [p for n, p in pairs if "bias" in n]
        assert plain
        return [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]

    optimizer, expected = adam_after_two_steps(model, groups)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert_same(read_moments(tmp_path / "optimizer.pt", trained_parameters(model)), expected)


def test_recorded_names_decide_where_torch_wrote_them(tmp_path):
    model = adapted()

    def shuffled(model):
        pairs = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [{"params": pairs[5:]}, {"params": pairs[2:5]}, {"params": pairs[:2]}]

    optimizer, expected = adam_after_two_steps(model, shuffled)
    assert "param_names" in optimizer.state_dict()["param_groups"][0]
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    assert_same(read_moments(tmp_path / "optimizer.pt", trained_parameters(model)), expected)


def test_integer_keys_whose_order_cannot_be_known_are_refused(tmp_path):
    model = adapted()

    def lora_plus(model):
        pairs = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        return [{"params": [p for n, p in pairs if kind in n]} for kind in ("lora_A", "lora_B")]

    optimizer, _ = adam_after_two_steps(model, lora_plus)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match=r"groups of \[6, 6\].*order is unknown"):
        read_moments(tmp_path / "optimizer.pt", trained_parameters(model))


@pytest.mark.parametrize("prefix", ["", "module.", "_fsdp_wrapped_module.", "_orig_mod.module."])
@pytest.mark.parametrize("nested", [False, True])
def test_names_that_fsdp_wrote_are_found_whatever_wraps_them(tmp_path, prefix, nested):
    model = adapted()
    optimizer, expected = adam_after_two_steps(model)
    tree = named(optimizer, model)
    inner = ".layers.0." + ("_fsdp_wrapped_module." if prefix else "")
    tree["state"] = {prefix + n.replace(".layers.0.", inner): s for n, s in tree["state"].items()}
    torch.save({"optimizer": tree} if nested else tree, tmp_path / "optimizer.bin")
    assert_same(read_moments(tmp_path / "optimizer.bin", trained_parameters(model)), expected)


def test_flattened_state_is_read(tmp_path):
    model = adapted()
    optimizer, expected = adam_after_two_steps(model)
    flat = {}
    for name, slot in named(optimizer, model)["state"].items():
        flat |= {f"state.{name}.{kind}": value for kind, value in slot.items()}
        flat |= {f"param_groups.{name}.betas": (0.9, 0.999), f"param_groups.{name}.eps": 1e-8}
    torch.save(flat, tmp_path / "optimizer.bin")
    assert_same(read_moments(tmp_path / "optimizer.bin", trained_parameters(model)), expected)


def test_safetensors_are_read_in_our_form_and_in_the_dotted_one(tmp_path):
    model = adapted()
    moments = random_moments(model)
    write_moments(tmp_path / "ours.safetensors", moments)
    assert_same(read_moments(tmp_path / "ours.safetensors", trained_parameters(model)), moments)
    dotted = {f"state.{n}.{k}": t for k in ("exp_avg", "exp_avg_sq") for n, t in getattr(moments, k).items()}
    constants = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-7, "step": 42}
    save_file(dotted, tmp_path / "dotted.safetensors", metadata={"adam": json.dumps(constants)})
    assert_same(read_moments(tmp_path / "dotted.safetensors", trained_parameters(model)), moments)
    save_file(dotted, tmp_path / "bare.safetensors")
    with pytest.raises(ConfigError, match="metadata"):
        read_moments(tmp_path / "bare.safetensors", trained_parameters(model))


def broken(tree: dict, name: str, damage: str) -> dict:
    slot = tree["state"][name]
    if damage == "missing":
        del tree["state"][name]
    elif damage == "extra":
        tree["state"][name.replace("q_proj", "k_proj")] = slot
    elif damage == "shape":
        slot["exp_avg_sq"] = slot["exp_avg_sq"].T.clone()
    elif damage == "twice":
        tree["state"]["module." + name] = slot
    elif damage == "sgd":
        tree["state"][name] = {"momentum_buffer": slot["exp_avg"]}
    elif damage == "quantised":
        slot["exp_avg"] = slot["exp_avg"].to(torch.uint8)
    elif damage == "nan":
        slot["exp_avg"][0, 0] = float("nan")
    elif damage == "betas":
        tree["param_groups"].append({**tree["param_groups"][0], "betas": (0.5, 0.999)})
    return tree


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        ("missing", ArtifactMismatch, "holds no state for '{name}'"),
        ("extra", ArtifactMismatch, r"k_proj.*does not train"),
        ("shape", ArtifactMismatch, r"exp_avg_sq of '{name}' has shape \[32, 2\], the parameter has \[2, 32\]"),
        ("twice", ArtifactMismatch, "two states for '{name}'"),
        ("sgd", ConfigError, "momentum_buffer"),
        ("quantised", ConfigError, "floating-point 'exp_avg'"),
        ("nan", ConfigError, "not finite"),
        ("betas", ConfigError, "betas"),
    ],
)
def test_each_parameter_is_checked_and_named(tmp_path, damage, error, message):
    model = adapted()
    name = next(n for n, _ in trained_parameters(model) if "q_proj.lora_A" in n)
    optimizer, _ = adam_after_two_steps(model)
    torch.save(broken(named(optimizer, model), name, damage), tmp_path / "optimizer.bin")
    with pytest.raises(error, match=message.format(name=name.replace(".", r"\."))):
        read_moments(tmp_path / "optimizer.bin", trained_parameters(model), "warmup.checkpoints.0.optimizer")


def test_integer_keyed_state_of_another_adapter_is_refused(tmp_path):
    optimizer, _ = adam_after_two_steps(adapted(target_modules=["q_proj"]))
    torch.save(optimizer.state_dict(), tmp_path / "fewer.pt")
    with pytest.raises(ArtifactMismatch, match="numbers 4 parameters, the adapter trains 12"):
        read_moments(tmp_path / "fewer.pt", trained_parameters(adapted()))
    optimizer, _ = adam_after_two_steps(adapted(r=3))
    torch.save(optimizer.state_dict(), tmp_path / "rank.pt")
    with pytest.raises(ArtifactMismatch, match=r"has shape \[3, 32\], the parameter has \[2, 32\]"):
        read_moments(tmp_path / "rank.pt", trained_parameters(adapted()))


class Payload:
    def __reduce__(self):
        return (os.mkdir, ("ran_by_unpickling",))


def test_a_file_that_wants_to_run_code_is_refused_and_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state": Payload()}, tmp_path / "optimizer.pt")
    with pytest.raises(ConfigError, match="without running code"):
        read_moments(tmp_path / "optimizer.pt", [])
    assert not (tmp_path / "ran_by_unpickling").exists()


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 torn")
    (tmp_path / "torn.safetensors").write_bytes(b"\x00" * 4)
    (tmp_path / "optimizer_0").mkdir()
    torch.save([1, 2], tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "other.pt")
    messages = {
        "none.pt": "no such file",
        "torn.pt": "damaged",
        "torn.safetensors": "safetensors",
        "optimizer_0": "dcp_to_torch_save",
        "list.pt": "holds a list",
        "other.pt": "no optimizer state",
    }
    for name, message in messages.items():
        with pytest.raises(ConfigError, match=message) as caught:
            read_moments(tmp_path / name, [], "warmup.checkpoints.0.optimizer")
        assert str(caught.value).startswith("warmup.checkpoints.0.optimizer: ")


def imported(folder, **changes) -> ImportedCheckpoint:
    return ImportedCheckpoint(adapter=str(folder), mean_learning_rate=1e-5, **changes)


def test_an_adapter_without_moments_serves_directions_that_need_none(tmp_path):
    model = adapted()
    save_adapter(model, tmp_path / "adapter")
    checkpoint = import_checkpoint(imported(tmp_path / "adapter"), trained_parameters(model), tmp_path / "out")
    with pytest.raises(ArtifactMismatch, match="features.direction to sgd"):
        checkpoint.moments()
    assert len(checkpoint.digest) == 64


def test_an_adapter_of_another_model_is_refused_parameter_by_parameter(tmp_path):
    parameters = trained_parameters(adapted())
    save_adapter(adapted(r=3), tmp_path / "rank")
    save_adapter(adapted(target_modules=["q_proj"]), tmp_path / "fewer")
    save_adapter(adapted(target_modules=["q_proj", "v_proj", "o_proj", "k_proj"]), tmp_path / "more")
    messages = {
        "rank": r"lora_A.*has shape \[3, 32\] in .* and \[2, 32\]",
        "fewer": "has no '.*v_proj.*'",
        "more": "holds '.*k_proj.*', which the model does not train",
    }
    for name, message in messages.items():
        with pytest.raises(ArtifactMismatch, match=message):
            import_checkpoint(imported(tmp_path / name), parameters, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"warmup\.checkpoints\.adapter: .*adapter_config\.json"):
        import_checkpoint(imported(tmp_path / "absent"), parameters, tmp_path / "out")
    config = tmp_path / "rank" / "adapter_config.json"
    config.write_text(config.read_text().replace('"LORA"', '"IA3"'))
    with pytest.raises(ConfigError, match="IA3"):
        import_checkpoint(imported(tmp_path / "rank"), parameters, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_wrappers_are_taken_out_of_names_and_nothing_else():
    plain = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert strip_wrappers("module._fsdp_wrapped_module." + plain.replace("lora_A", "lora_A.default")) == plain
    assert strip_wrappers(plain) == plain
    assert strip_wrappers("model.default.lora_A.weight") == "model.default.lora_A.weight"
