"""Adapters as people hold them: what plain LoRA is computed as PEFT computes it, and all else is refused by name."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import peft
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from influray.config import FeaturesConfig
from influray.features.gradient import GradientFeaturizer
from influray.model.adapter_files import BEYOND_PLAIN_LORA, INERT, LoraFacts, read_adapter
from influray.model.batch import make_batch
from influray.model.example_gradients import ExampleGradients
from influray.model.loading import attach_adapter, swap_adapter
from influray.protocols import ArtifactMismatch, ConfigError, TokenizedExample
from tests.tiny import tiny_llama

# Every kind that is read, as LoraConfig takes it. The base is the tiny Llama, its head tied to the embedding.
ACCEPTED: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "random": {"init_lora_weights": False},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "eva": {"init_lora_weights": "eva"},
    "rslora": {"use_rslora": True},
    "patterns": {"rank_pattern": {"layers.0.self_attn.q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
    "one layer": {"layers_to_transform": [1], "layers_pattern": "layers"},
    "excluded": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "expression": {"target_modules": r".*layers\.1\.(self_attn\.k_proj|mlp\.down_proj)"},
    "all linear": {"target_modules": "all-linear"},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "dropout": {"lora_dropout": 0.5},
}
REWRITING = ["pissa", "pissa_niter_4", "olora", "loftq", "corda", "lora_ga", "PiSSA"]


def saved(path, base=None, seed=0, **settings):
    """Save an adapter with random matrices as peft does, and return its folder."""
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], **settings})
    model = peft.get_peft_model(base if base is not None else tiny_llama(), config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    return path


def changed(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))
    return folder


def examples():
    ids = np.random.default_rng(3).integers(5, 260, (3, 12)).astype(np.int32)
    return [TokenizedExample(i, row[: 12 - 3 * i], np.arange(12 - 3 * i) > 4) for i, row in enumerate(ids)]


def by_autograd(model) -> dict[str, torch.Tensor]:
    """Gradients of each example's mean loss in peft's own model, by parameter."""
    found: dict[str, list[torch.Tensor]] = {}
    weights = {name: p.requires_grad_(True) for name, p in model.named_parameters() if ".lora_" in name}
    for example in examples():
        ids = torch.from_numpy(example.input_ids_S).long()
        labels = torch.where(torch.from_numpy(example.loss_mask_S), ids, -100)
        # Not the model's own loss, which rounds logits to float32.
        loss = F.cross_entropy(model(input_ids=ids[None]).logits[0, :-1], labels[1:])
        for name, grad in zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True):
            found.setdefault(name, []).append(grad.flatten())
    return {name: torch.stack(rows) for name, rows in found.items()}


def by_rows(model) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    gradients = ExampleGradients(model)
    gradients.run(make_batch(examples(), "cpu"), lambda w, block_Bp: found.__setitem__(w.name, block_Bp.clone()))
    gradients.close()
    return found


@pytest.mark.parametrize("kind", ACCEPTED)
def test_gradients_of_an_adapter_are_those_of_peft_itself(kind, tmp_path):
    folder = saved(tmp_path / "a", **ACCEPTED[kind])
    base = tiny_llama(dtype=torch.float64)
    expected = by_autograd(peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval())
    found = by_rows(attach_adapter(base, folder))
    assert found
    assert set(found) == set(expected)
    for name, block in expected.items():
        assert block.abs().max() > 0, name
        assert torch.allclose(found[name], block, rtol=1e-9, atol=1e-12), name


def test_gradients_of_an_untied_head_and_of_conv1d_are_those_of_peft_itself(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 261, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    gpt = GPT2LMHeadModel(GPT2Config(**sizes)).double().eval()
    llama = tiny_llama(dtype=torch.float64, tie_word_embeddings=False)
    for base, targets, extra in (
        (llama, ["lm_head", "o_proj"], {}),
        (gpt, ["c_attn", "c_proj"], {"fan_in_fan_out": True}),
    ):
        folder = saved(tmp_path / type(base).__name__, copy.deepcopy(base), target_modules=targets, **extra)
        expected = by_autograd(peft.PeftModel.from_pretrained(copy.deepcopy(base), str(folder)).eval())
        found = by_rows(attach_adapter(base, folder))
        for name, block in expected.items():
            assert torch.allclose(found[name], block, rtol=1e-9, atol=1e-12), name


def features(model) -> np.ndarray:
    config = FeaturesConfig.model_validate({"projector": {"dimension": 32}, "direction": "sgd"})
    featurizer = GradientFeaturizer(model, config, None, "sgd")
    rows = featurizer.compute(examples()).feature_BD
    featurizer.close()
    return rows


def test_rows_of_a_checkpoint_do_not_depend_on_those_read_before_it(tmp_path):
    """On one base, each after each: as workers take their turns, and beside each other as queries do."""
    from influray.ask.warm import _tree_over

    folders = {kind: saved(tmp_path / kind, seed=i, **given) for i, (kind, given) in enumerate(ACCEPTED.items())}
    alone = {kind: features(attach_adapter(tiny_llama(), folder)) for kind, folder in folders.items()}
    order = [*folders, *reversed(folders)]
    model = attach_adapter(tiny_llama(), folders[order[0]])
    for kind in order[1:]:
        model = swap_adapter(model, folders[kind])
        assert np.array_equal(features(model), alone[kind]), kind
    base = tiny_llama()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    beside = {kind: attach_adapter(_tree_over(base), folder) for kind, folder in folders.items()}
    for kind, one in beside.items():
        assert np.array_equal(features(one), alone[kind]), kind
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


@pytest.mark.parametrize("init", REWRITING)
def test_an_adapter_whose_initialisation_changes_the_base_is_refused_with_the_conversion(init, tmp_path):
    base = tiny_llama()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    folder = changed(saved(tmp_path / "a"), init_lora_weights=init, loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    mend = r"unload\(\)\.save_pretrained" if init == "loftq" else "path_initial_model_for_weight_conversion"
    with pytest.raises(ConfigError, match=rf"init_lora_weights='{init}', which changes the base.*{mend}"):
        attach_adapter(base, folder)
    assert all(torch.equal(tensor, before[name]) for name, tensor in base.state_dict().items())


def test_every_initialisation_that_peft_names_is_known_to_be_plain_or_not(tmp_path):
    """A newer peft may bring others; one that changes the base must not be taken for plain."""
    hints = str(peft.LoraConfig.__annotations__["init_lora_weights"])
    for init in ("gaussian", "eva", "olora", "pissa", "corda", "loftq", "orthogonal", "mica"):
        assert init in hints
    for init in ("mica", "unheard of"):
        with pytest.raises(ConfigError, match=rf"init_lora_weights='{init}'"):
            read_adapter(changed(saved(tmp_path / "a"), init_lora_weights=init))


def test_every_field_of_peft_is_taken_over_refused_or_known_to_be_inert():
    fields = set(peft.LoraConfig.__dataclass_fields__) - {"peft_type"}
    assert fields <= {*LoraFacts.model_fields, *BEYOND_PLAIN_LORA, *INERT}


@pytest.mark.parametrize("kind", ["pissa", "olora"])
def test_both_mends_give_the_model_that_was_trained(kind, tmp_path):
    """As docs/checkpoints.md shows them: peft's conversion, and the base without what the adapter took over."""
    model: Any = peft.get_peft_model(
        tiny_llama(), peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=kind)
    )
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.peft_config["default"].init_lora_weights = kind
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.arange(5, 45).view(2, 20)
    for _ in range(3):
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    expected = model.eval()(input_ids=ids).logits.detach()
    residual = copy.deepcopy(model).unload()
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))

    with torch.no_grad():
        converted = attach_adapter(tiny_llama(), tmp_path / "converted")(input_ids=ids).logits
        beside = attach_adapter(residual, changed(tmp_path / "trained", init_lora_weights=True))(input_ids=ids).logits
    assert torch.allclose(converted, expected, atol=1e-4)
    assert torch.allclose(beside, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("use_dora", True),
        ("lora_bias", True),
        ("modules_to_save", ["embed_tokens"]),
        ("trainable_token_indices", [1, 2]),
        ("target_parameters", ["mlp.experts.gate_up_proj"]),
        ("layer_replication", [[0, 2]]),
        ("alora_invocation_tokens", [3]),
        ("use_qalora", True),
        ("velora_config", {"num_groups": 2}),
        ("monteclora_config", {"num_samples": 4}),
        ("use_bdlora", {"nblocks": 2}),
        ("arrow_config", {"top_k": 2}),
        ("kasa_config", {"beta": 0.1}),
        ("bias", "all"),
        ("a_field_of_next_year", {"on": True}),
    ],
)
def test_what_plain_lora_is_not_is_refused_by_its_field(field, value, tmp_path):
    with pytest.raises(ConfigError, match=field):
        attach_adapter(tiny_llama(), changed(saved(tmp_path / "a"), **{field: value}))


@pytest.mark.parametrize("config", [peft.IA3Config, peft.LoHaConfig, peft.AdaLoraConfig, peft.VeraConfig])
def test_adapters_of_other_types_are_refused_by_their_type(config, tmp_path):
    extra = {"feedforward_modules": ["v_proj"]} if config is peft.IA3Config else {}
    extra |= {"total_step": 10} if config is peft.AdaLoraConfig else {}
    made = config(target_modules=["q_proj", "v_proj"] if config is peft.IA3Config else ["q_proj"], **extra)
    peft.get_peft_model(tiny_llama(), made).save_pretrained(tmp_path / "a")
    with pytest.raises(ConfigError, match=f"peft_type '{made.peft_type.value}'"):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lora_alpha": float("nan")}, r"lora_alpha.*found nan"),
        ({"lora_alpha": float("inf")}, r"lora_alpha.*found inf"),
        ({"lora_alpha": -8}, "lora_alpha.*greater than 0"),
        ({"lora_alpha": 0}, "lora_alpha.*greater than 0"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        ({"lora_alpha": "16"}, "lora_alpha.*valid number"),
        ({"lora_alpha": True}, "lora_alpha"),
        ({"r": 0}, "r: .*greater than or equal to 1"),
        ({"r": -4}, "r: "),
        ({"r": 10**400}, "r: .*less than or equal"),
        ({"r": 4.5}, "r: "),
        ({"r": None}, "r: "),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": {"(": 2}}, "no regular expression"),
        ({"alpha_pattern": {"q_proj": float("nan")}}, "alpha_pattern"),
        ({"target_modules": None}, "target_modules"),
        ({"target_modules": [["q_proj"]]}, "target_modules"),
        ({"target_modules": "(unclosed"}, "no regular expression"),
        ({"lora_dropout": 7}, "lora_dropout"),
        ({"init_lora_weights": {"a": 1}}, "init_lora_weights"),
        ({"peft_type": None}, "no peft_type"),
        ({"peft_type": "TELEPATHY"}, "peft_type 'TELEPATHY'"),
        ({"peft_type": ["LORA"]}, "peft_type"),
        ({"use_rslora": "yes"}, "use_rslora"),
    ],
)
def test_fields_of_wrong_values_are_named(fields, message, tmp_path):
    folder = changed(saved(tmp_path / "a"), **fields)
    with pytest.raises(ConfigError, match=rf"warmup\.checkpoints\.0\.adapter: .*{message}"):
        read_adapter(folder, "warmup.checkpoints.0.adapter")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not readable JSON"),
        (b"{", "not readable JSON"),
        (b"[]", "holds a list"),
        (b"\xff\xfe{}", "not readable JSON"),
        (b'{"r": ' + b"9" * 5000 + b"}", "not readable JSON"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "nested too deeply"),
        (b'{"peft_type": "LORA", "rank_pattern": ' + b"[" * 900 + b"]" * 900 + b"}", "r: Field required"),
        (b'{"peft_type": "LORA", "use_dora": ' + b"[" * 900 + b"1" + b"]" * 900 + b"}", "use_dora"),
        (b'{"peft_type": "LORA", "lora_alpha": 8, "target_modules": ["q_proj"]}', "r: Field required"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "git lfs pull"),
    ],
)
def test_a_config_that_is_none_is_named(content, message, tmp_path):
    folder = saved(tmp_path / "a")
    (folder / "adapter_config.json").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_adapter(folder)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git lfs pull"),
        (lambda data: data[: len(data) // 2], "not a whole safetensors file"),
        (lambda data: b"", "not a whole safetensors file"),
        (lambda data: b"\xff" * 8 + data[8:], "not a whole safetensors file"),
        (lambda data: data[:8] + b"}" + data[9:], "not a whole safetensors file"),
        (lambda data: data[:8] + b"[" * (len(data) - 8), "not a whole safetensors file"),
    ],
)
def test_damaged_weights_are_named(damage, message, tmp_path):
    path = saved(tmp_path / "a") / "adapter_model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ConfigError, match=message):
        read_adapter(tmp_path / "a")


def stored(folder, **tensors):
    path = folder / "adapter_model.safetensors"
    found = load_file(path)
    found |= {name.replace("/", "."): tensor for name, tensor in tensors.items()}
    save_file(found, path, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.lm_head.base_layer.weight",
        "base_model.model.lm_head.weight",
        "lm_head.base_layer.weight",
        "base_model.model.model.embed_tokens.weight",
        "base_model.model.model.embed_tokens.base_layer.weight",
        "base_model.model.model.norm.weight",
    ],
)
def test_a_frozen_weight_that_a_file_holds_must_be_the_bases_own(name, tmp_path):
    base = tiny_llama()
    plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
    weight = base.state_dict()[plain]
    expected = features(attach_adapter(tiny_llama(), saved(tmp_path / "plain", seed=1)))
    for label, dtype in (("same", torch.float32), ("rounded", torch.bfloat16)):
        folder = stored(saved(tmp_path / label, seed=1), **{name: weight.to(dtype)})
        assert np.array_equal(features(attach_adapter(tiny_llama(), folder)), expected), "the stored copy was loaded"
    other = weight.clone()
    other.flatten()[7] += 0.01
    with pytest.raises(ArtifactMismatch, match=f"{name} differs from the base's weight"):
        attach_adapter(tiny_llama(), stored(saved(tmp_path / "other"), **{name: other}))
    with pytest.raises(ArtifactMismatch, match=f"{name} has shape"):
        attach_adapter(tiny_llama(), stored(saved(tmp_path / "longer"), **{name: torch.cat([weight, weight])}))


def test_what_peft_stores_with_the_head_and_with_a_resized_vocabulary_is_accepted(tmp_path):
    folder = saved(tmp_path / "head", target_modules=["q_proj", "lm_head"])
    assert any("base_layer" in name for name in read_adapter(folder).frozen)
    attach_adapter(tiny_llama(), folder)
    resized = tiny_llama(vocab=264)
    model: Any = peft.get_peft_model(copy.deepcopy(resized), peft.LoraConfig(r=4, target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "resized", save_embedding_layers=True)
    assert read_adapter(tmp_path / "resized").frozen
    attach_adapter(resized, tmp_path / "resized")
    with pytest.raises(ArtifactMismatch, match="vocabulary was resized"):
        attach_adapter(tiny_llama(), tmp_path / "resized")


def test_adapters_of_the_embedding_shards_and_infinities_are_refused_by_their_tensor(tmp_path):
    with pytest.raises(ConfigError, match="lora_embedding_A adapts an embedding"):
        read_adapter(saved(tmp_path / "embedding", target_modules=["embed_tokens"]))
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for shape in ((0,), (64,), (0, 32)):
        with pytest.raises(ConfigError, match=r"is not whole, as ZeRO-3.*zero_to_fp32"):
            read_adapter(stored(saved(tmp_path / "hollow"), **{name: torch.zeros(shape)}))
    with pytest.raises(ConfigError, match=f"{name} is not finite"):
        attach_adapter(tiny_llama(), stored(saved(tmp_path / "nan"), **{name: torch.full((4, 32), torch.nan)}))
    save_file({"a": torch.zeros(1)}, tmp_path / "nan" / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="holds no LoRA matrix"):
        read_adapter(tmp_path / "nan")


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (["adapter_model.bin"], "adapter_model.bin, a pickle"),
        (["pytorch_model.bin"], "weights of a whole model, such as zero_to_fp32.py writes"),
        (["model-00001-of-00002.safetensors"], "weights of a whole model"),
        (["zero_to_fp32.py", "latest"], "a DeepSpeed checkpoint"),
        (["global_step100/mp_rank_00_model_states.pt"], "a DeepSpeed checkpoint"),
        (["pytorch_model_fsdp_0/__0_0.distcp"], "FSDP shards"),
        (["default/adapter_model.safetensors"], "one lies in .*default"),
        ([], "what peft's save_pretrained writes"),
    ],
)
def test_what_lies_in_place_of_an_adapter_is_named_with_the_mend(beside, message, tmp_path):
    folder = saved(tmp_path / "a")
    (folder / "adapter_model.safetensors").unlink()
    for name in beside:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    with pytest.raises(ConfigError, match=rf"holds no adapter_model\.safetensors; .*{message}"):
        read_adapter(folder)
