"""A base of 4 bits: its rows are those of the numbers that its weights stand for. Runs where bitsandbytes is installed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from influray.config_model import ModelConfig
from influray.model.example_gradients import ExampleGradients
from influray.model.loading import load_base
from tests.reference.loop_gradients import loop_gradients
from tests.tiny import byte_tokenizer, tiny_llama
from tests.unit.test_example_gradients import ATTENTION, assert_rows, collected, mixed_batch, with_lora

bitsandbytes = pytest.importorskip("bitsandbytes", reason="not installed: pip install bitsandbytes")
SHAPE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_rows_of_a_base_of_4_bits_are_those_of_its_weights_written_out(tmp_path, kind):
    tiny_llama(**SHAPE).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    base = load_base(ModelConfig(base=str(tmp_path), quantization=kind), device="cpu")
    plain = tiny_llama(dtype=torch.float64, **SHAPE)
    written_out = 0
    for name, module in base.named_modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            weight = bitsandbytes.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            other = plain.get_submodule(name)
            assert isinstance(other, nn.Linear)
            assert not torch.equal(other.weight.float(), weight.float())
            other.weight.data.copy_(weight)
            written_out += 1
    assert written_out == 14, "seven linear layers in each of two"
    found, loss, _ = collected(ExampleGradients(with_lora(base, ATTENTION)), mixed_batch())
    assert_rows(found, loop_gradients(with_lora(plain, ATTENTION), mixed_batch()), 1e-5)
    assert torch.isfinite(loss).all()
