"""Base models, tokenizers and adapters: what is loaded, what is refused, and what their digests depend on."""

from __future__ import annotations

import json
import shutil
import sys

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from influray.config_model import LoraConfig, ModelConfig
from influray.model.loading import (
    attach_adapter,
    attach_new_adapter,
    load_base,
    load_tokenizer,
    model_digest,
    require_base,
    swap_adapter,
    tokenizer_digest,
)
from influray.protocols import ArtifactMismatch, ConfigError
from tests.tiny import byte_tokenizer, tiny_llama, write_tiny_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


def model_config(base, **settings):
    return ModelConfig.model_validate({"base": str(base), **settings})


def adapter(path, seed, r=4, targets=("q_proj", "v_proj"), **settings):
    """Save an adapter with random matrices and return its folder."""
    model = peft.get_peft_model(tiny_llama(), peft.LoraConfig(r=r, target_modules=list(targets), **settings))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(path)
    return path


def logits(model):
    with torch.no_grad():
        return model(input_ids=torch.arange(5, 45).view(2, 20)).logits


def test_a_base_comes_in_eval_mode_in_its_dtype_without_a_cache(folder):
    model = load_base(model_config(folder, dtype="bfloat16"), device="cpu")
    assert not model.training
    assert model.dtype == torch.bfloat16
    assert model.config.use_cache is False
    assert model(input_ids=torch.arange(5)[None]).past_key_values is None
    expected = tiny_llama().state_dict()
    for name, tensor in load_base(model_config(folder)).state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_an_attention_kernel_can_be_chosen(folder):
    assert load_base(model_config(folder, attention="eager")).config._attn_implementation == "eager"


def test_a_quantized_base_names_what_it_needs(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    wanted = ModelConfig(base=str(folder), quantization="nf4")
    with pytest.raises(ConfigError, match=r"model\.quantization: 'nf4' needs bitsandbytes.*pip install"):
        load_base(wanted)


def test_weights_in_pickles_are_not_read(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"model\.base: .* cannot be loaded .*safetensors"):
        load_base(model_config(copy))


def test_weights_that_do_not_cover_the_model_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.1.self_attn.q_proj.weight"
    del tensors[name]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=rf"model\.base: .* lack 1 tensors of LlamaForCausalLM, such as {name}"):
        load_base(model_config(copy))


def test_torn_weights_are_refused(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConfigError, match=r"model\.base: .* cannot be loaded"):
        load_base(model_config(copy))


@pytest.mark.parametrize("read", [load_base, load_tokenizer, model_digest])
def test_a_folder_that_is_missing_or_no_model_is_refused(read, tmp_path):
    with pytest.raises(ConfigError, match=r"model\.base: there is no folder .*missing"):
        read(model_config(tmp_path / "missing"))
    with pytest.raises(ConfigError, match=r"model\.base: the folder .* holds no config\.json"):
        read(model_config(tmp_path))
    with pytest.raises(ConfigError, match=r"model\.base: the folder .* holds a peft adapter"):
        read(model_config(adapter(tmp_path / "adapter", 0)))


@pytest.mark.parametrize("read", [load_base, load_tokenizer, model_digest])
def test_a_gguf_is_refused_with_the_way_to_convert_it(read, tmp_path):
    (tmp_path / "small.Q4_1.GGUF").write_bytes(b"GGUF")
    for base in (tmp_path, tmp_path / "small.Q4_1.GGUF", "nobody/small.Q4_1.gguf"):
        with pytest.raises(ConfigError, match=r"model\.base: .* is a GGUF.*pip install gguf.*gguf_file='small\.Q4_1"):
            read(model_config(base))
    (tmp_path / "config.json").write_text("{}")  # a whole model that has a GGUF beside it
    require_base(model_config(tmp_path))


@pytest.mark.parametrize("read", [load_base, load_tokenizer, model_digest])
def test_an_unknown_hub_id_is_refused(read):
    with pytest.raises(ConfigError, match=r"model\.base: 'nobody/no-such-model'"):
        read(model_config("nobody/no-such-model"))


def test_a_model_of_an_unknown_type_is_refused(copy):
    facts = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**facts, "model_type": "nonesuch"}))
    with pytest.raises(ConfigError, match=r"model\.base: .* cannot be loaded .*nonesuch"):
        load_base(model_config(copy))


def test_a_folder_without_a_tokenizer_is_refused(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
    with pytest.raises(ConfigError, match=r"model\.base: .* tokenizer"):
        load_tokenizer(model_config(copy))


def test_a_tokenizer_comes_back_as_it_was_saved(folder):
    tokenizer = load_tokenizer(model_config(folder))
    assert tokenizer("Hello <|im_end|>").input_ids == byte_tokenizer()("Hello <|im_end|>").input_ids
    assert tokenizer.is_fast


def test_token_ids_beyond_the_embedding_are_refused_with_both_numbers(copy):
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<padding>"})  # in no text, so it needs no row
    tokenizer.save_pretrained(copy)
    assert load_tokenizer(model_config(copy)).pad_token == "<padding>"
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|turn|>", "<|stop|>"]})
    tokenizer.save_pretrained(copy)
    with pytest.raises(ConfigError, match=r"model\.base: .*264 token ids.*261 rows.*'<\|stop\|>'.*resize_token_embed"):
        load_tokenizer(model_config(copy))


def test_a_new_adapter_follows_from_its_seed_and_leaves_the_generator_alone():
    config = LoraConfig(r=3, alpha=6, targets=("q_proj", "up_proj"))
    torch.manual_seed(9)
    expected = torch.rand(3)

    def fresh(seed):
        model = tiny_llama()
        torch.manual_seed(9)
        adapted = attach_new_adapter(model, config, seed)
        assert torch.equal(torch.rand(3), expected)
        return {name: p for name, p in adapted.named_parameters() if p.requires_grad}

    first, again, other = fresh(1), fresh(1), fresh(2)
    assert "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight" in first
    assert len(first) == 8  # 2 layers, 2 targets, A and B
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
    assert all(not bool(p.any()) for name, p in first.items() if "lora_B" in name)


def test_a_new_adapter_changes_no_logit():
    model = tiny_llama()
    before = logits(model)
    assert torch.equal(logits(attach_new_adapter(model, LoraConfig(r=2), 0).eval()), before)


def test_all_linear_layers_can_be_asked_for():
    model = attach_new_adapter(tiny_llama(), LoraConfig(r=2, targets=("all-linear",)), 0)
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 14


def test_a_target_that_is_no_linear_layer_is_refused_with_those_there_are():
    endings = "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj"
    for target in ("query", "self_attn", "proj"):
        with pytest.raises(ConfigError, match=rf"model\.lora\.targets: .*called '{target}'; there are {endings}"):
            attach_new_adapter(tiny_llama(), LoraConfig(targets=("q_proj", target)), 0)


def test_an_attached_adapter_is_frozen_and_without_dropout(tmp_path):
    model = attach_adapter(tiny_llama(), adapter(tmp_path / "a", 1, lora_dropout=0.5))
    assert not model.training
    assert not any(module.training for module in model.modules())
    assert not any(p.requires_grad for p in model.parameters())
    assert torch.equal(logits(model), logits(model))
    assert not torch.allclose(logits(model), logits(tiny_llama()), atol=1e-3)


def test_a_swapped_adapter_is_bit_for_bit_a_fresh_load(tmp_path):
    paths = [
        adapter(tmp_path / "a", 1),
        adapter(tmp_path / "b", 2),
        adapter(tmp_path / "c", 3, r=7, targets=("o_proj", "down_proj"), lora_alpha=3),
    ]
    model = attach_adapter(tiny_llama(), paths[0])
    for path in (paths[1], paths[2], paths[0]):
        model = swap_adapter(model, path)
        fresh = attach_adapter(tiny_llama(), path)
        found, expected = dict(model.named_parameters()), dict(fresh.named_parameters())
        assert list(found) == list(expected)
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert torch.equal(logits(model), logits(fresh))
        assert not model.training


def test_a_folder_without_an_adapter_in_safetensors_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no adapter_config\.json"):
        attach_adapter(tiny_llama(), tmp_path / "missing")
    path = adapter(tmp_path / "a", 1)
    torch.save(load_file(path / "adapter_model.safetensors"), path / "adapter_model.bin")
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no adapter_model\.safetensors"):
        attach_adapter(tiny_llama(), path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "use_dora=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"lora_bias": True}, "lora_bias=True"),
        ({"modules_to_save": ["norm"]}, r"modules_to_save=\['norm'\]"),
    ],
)
def test_an_adapter_that_trains_more_than_lora_matrices_is_refused(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        attach_adapter(tiny_llama(), adapter(tmp_path / "a", 1, **settings))


def test_an_adapter_of_another_base_is_refused(tmp_path):
    path = adapter(tmp_path / "a", 1)
    with pytest.raises(ArtifactMismatch, match="does not fit the base model"):
        attach_adapter(tiny_llama(hidden_size=64), path)
    with pytest.raises(ArtifactMismatch, match=r"layers\.2\..* is in the base model but not in the file"):
        attach_adapter(tiny_llama(num_hidden_layers=3), path)
    with pytest.raises(ArtifactMismatch, match=r"layers\.1\..* is in the file but not in the base model"):
        attach_adapter(tiny_llama(num_hidden_layers=1), path)


def test_the_digest_of_a_model_is_that_of_its_content(folder, copy):
    before = model_digest(model_config(folder))
    assert model_digest(model_config(copy)) == before
    (copy / "README.md").write_text("about")
    assert model_digest(model_config(copy)) == before
    tensors = load_file(copy / "model.safetensors")
    tensors["model.norm.weight"][3] += 1
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert model_digest(model_config(copy)) != before


def test_the_digest_of_a_model_sees_its_config(folder, copy):
    facts = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**facts, "rms_norm_eps": 0.1}))
    assert model_digest(model_config(copy)) != model_digest(model_config(folder))


def test_the_digest_of_a_tokenizer_sees_vocabulary_and_template_but_not_its_last_call():
    tokenizer = byte_tokenizer()
    before = tokenizer_digest(tokenizer)
    tokenizer(["a", "long text"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == before == tokenizer_digest(byte_tokenizer())
    assert tokenizer_digest(byte_tokenizer(chat_template="{{ messages }}")) != before
    assert tokenizer_digest(byte_tokenizer(eos="</s>")) != before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_digest(tokenizer) != before
