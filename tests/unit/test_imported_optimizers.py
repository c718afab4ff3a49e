"""Optimizer states of other trainers and kinds: Adam's moments out of them, or the optimizer's name."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from influray.model.optimizer_state import read_moments
from influray.protocols import ArtifactMismatch, ConfigError

NAMES = [f"base_model.model.model.layers.{i}.q_proj.lora_{x}.default.weight" for i in range(2) for x in "AB"]
PARAMETERS = [(name, (64, 80) if "lora_A" in name else (80, 64)) for name in NAMES]  # 5120 entries: quantised by bnb
DOCS = Path(__file__).parents[2] / "docs" / "checkpoints.md"


def slots(seed: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "step": torch.tensor(7.0),
            "exp_avg": torch.randn(shape, generator=generator),
            "exp_avg_sq": torch.rand(shape, generator=generator),
        }
        for _, shape in PARAMETERS
    ]


def state(states: list[dict], **group) -> dict:
    groups = [{"params": list(range(len(states))), "lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, **group}]
    return {"state": dict(enumerate(states)), "param_groups": groups}


def read(tree, path, name="optimizer.pt"):
    torch.save(tree, path / name)
    return read_moments(path / name, PARAMETERS, "warmup.checkpoints.0.optimizer")


def bitsandbytes(state1: str = "state1", state2: str = "state2") -> list[dict]:
    return [{"step": 7, state1: one["exp_avg"], state2: one["exp_avg_sq"]} for one in slots()]


def test_the_32_bit_states_of_bitsandbytes_are_adams_moments(tmp_path):
    found = read(state(bitsandbytes(), alpha=0.0, t_alpha=None, t_beta3=None), tmp_path)
    assert found.step == 7
    for name, one in zip(NAMES, slots(), strict=True):
        assert torch.equal(found.exp_avg[name], one["exp_avg"])
        assert torch.equal(found.exp_avg_sq[name], one["exp_avg_sq"])


def test_states_that_bitsandbytes_nests_are_read_alike(tmp_path):
    nested = [{"step": one.pop("step"), "__bnb_optimizer_quant_state__": one} for one in bitsandbytes()]
    found = read(state(nested), tmp_path)
    assert torch.equal(found.exp_avg[NAMES[1]], slots()[1]["exp_avg"])
    del nested[0]["__bnb_optimizer_quant_state__"]["state2"]
    with pytest.raises(ConfigError, match="parameter 0 has 'state1' without 'state2'"):
        read(state(nested), tmp_path)


@pytest.mark.parametrize(
    "kind", ["PagedAdamW32bit", "AdamW", "AdamW8bit", "PagedAdamW8bit", "Lion", "AdEMAMix", "LAMB"]
)
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported")
def test_what_bitsandbytes_itself_writes_is_read_or_refused(kind, tmp_path):
    bnb = pytest.importorskip("bitsandbytes")
    parameters = [torch.nn.Parameter(torch.randn(shape)) for _, shape in PARAMETERS]
    reference = [torch.nn.Parameter(p.detach().clone()) for p in parameters]
    optimizer = getattr(bnb.optim, kind)(parameters, lr=1e-3)
    plain = torch.optim.AdamW(reference, lr=1e-3)
    for _ in range(3):
        for p, q in zip(parameters, reference, strict=True):
            p.grad = torch.randn(p.shape)
            q.grad = p.grad.clone()
        optimizer.step()
        plain.step()
    if "Adam" not in kind or kind == "AdEMAMix":
        with pytest.raises(ConfigError, match=kind):
            read(optimizer.state_dict(), tmp_path)
        return
    found = read(optimizer.state_dict(), tmp_path)
    assert found.step == 3
    tolerance = 0.02 if "8bit" in kind else 1e-6  # of the largest entry: what 8 bits keep
    for name, p in zip(NAMES, reference, strict=True):
        for moment, own in (("exp_avg", found.exp_avg[name]), ("exp_avg_sq", found.exp_avg_sq[name])):
            assert (own - plain.state[p][moment]).abs().max() < tolerance * plain.state[p][moment].abs().max()


def test_paged_states_are_read_as_the_tensors_they_are(tmp_path):
    states = bitsandbytes()
    for slot in states:
        for tensor in (slot["state1"], slot["state2"]):
            tensor.is_paged, tensor.page_deviceid = True, 0  # as bitsandbytes marks them
    found = read(state(states), tmp_path)
    assert torch.equal(found.exp_avg[NAMES[2]], slots()[2]["exp_avg"])


def quantised(value: torch.Tensor, code: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """8-bit codes of blocks, and the numbers they stand for, one after the other."""
    flat, codes, absmax, decoded = value.flatten().tolist(), [], [], []
    for start in range(0, len(flat), size):
        block = torch.tensor(flat[start : start + size])
        absmax.append(float(block.abs().max()))
        nearest = (block[:, None] / absmax[-1] - code).abs().argmin(1)
        codes += nearest.tolist()
        decoded += (code[nearest] * absmax[-1]).tolist()
    shape = value.shape
    codes_u8 = torch.tensor(codes, dtype=torch.uint8).view(shape)
    return codes_u8, torch.tensor(absmax), torch.tensor(decoded).view(shape)


@pytest.mark.parametrize("size", [256, 2048])
def test_block_wise_8_bit_states_are_decoded_by_their_maps(size, tmp_path):
    signed, unsigned = torch.linspace(-1, 1, 256), torch.linspace(0, 1, 256) ** 2
    states, expected = [], []
    for one in slots():
        first, max1, decoded1 = quantised(one["exp_avg"], signed, size)
        second, max2, decoded2 = quantised(one["exp_avg_sq"], unsigned, size)
        codes = {"state1": first, "state2": second, "qmap1": signed, "qmap2": unsigned}
        states.append({"step": 7, **codes, "absmax1": max1, "absmax2": max2})
        expected.append((decoded1, decoded2))
    states[1] = bitsandbytes()[1]  # bitsandbytes leaves small parameters in 32 bits
    expected[1] = (states[1]["state1"], states[1]["state2"])
    found = read(state(states), tmp_path)
    for name, (first, second) in zip(NAMES, expected, strict=True):
        assert torch.allclose(found.exp_avg[name], first, rtol=1e-6)
        assert torch.allclose(found.exp_avg_sq[name], second, rtol=1e-6)
    states[0]["absmax1"] = states[0]["absmax1"][:-1]
    with pytest.raises(ConfigError, match="no form of bitsandbytes' Adam"):
        read(state(states), tmp_path)
    del states[0]["qmap1"]
    with pytest.raises(ConfigError, match="floating-point 'exp_avg'"):
        read(state(states), tmp_path)


def trained(make) -> dict:
    parameters = [torch.nn.Parameter(torch.randn(shape)) for _, shape in PARAMETERS]
    optimizer = make(parameters)
    for _ in range(2):
        torch.stack([(p**2).sum() for p in parameters]).sum().backward()
        optimizer.step()
    return optimizer.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), "no optimizer state.*plain SGD"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), "SGD with momentum, or Muon"),
        (lambda p: torch.optim.Muon(p, lr=0.1), "SGD with momentum, or Muon"),
        (lambda p: torch.optim.RMSprop(p), "RMSprop"),
        (lambda p: torch.optim.Adagrad(p), "Adagrad"),
        (lambda p: torch.optim.Adadelta(p), "Adadelta"),
        (lambda p: torch.optim.Adamax(p), "Adamax"),
        (lambda p: torch.optim.NAdam(p), "NAdam"),
        (lambda p: torch.optim.Adam(p, amsgrad=True), "amsgrad"),
        (lambda p: torch.optim.Adafactor(p), "Adafactor"),
        (lambda p: __import__("transformers").optimization.Adafactor(p), "Adafactor"),
    ],
)
def test_states_of_other_optimizers_are_refused_by_the_name_of_the_optimizer(make, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read(trained(make), tmp_path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: [{"step": 7, "exp_avg": one["exp_avg"]} for one in s], "Lion"),
        (lambda s: [{"step": 7, "state1": one["exp_avg"]} for one in s], "'state1' without 'state2'"),
        (lambda s: [{**one, "GG": torch.eye(2)} for one in s], "SOAP"),
        (lambda s: [{**one, "something": 1} for one in s], "'something' beside Adam's moments"),
        (lambda s: [{**one, "exp_avg_sq": -one["exp_avg_sq"]} for one in s], "exp_avg_sq of '.*' is below zero"),
        (lambda s: [{**o, "exp_avg": o["exp_avg_sq"], "exp_avg_sq": o["exp_avg"]} for o in s], "swapped"),
        (lambda s: [{**o, "exp_avg": o["exp_avg_sq"]} for o in s], "no negative one"),
        (lambda s: [{**o, "exp_avg": o["exp_avg"] * torch.nan} for o in s], "exp_avg of '.*' is not finite"),
        (lambda s: [{**o, "exp_avg_sq": o["exp_avg_sq"] / 0} for o in s], "exp_avg_sq of '.*' is not finite"),
        (lambda s: [{**o, "step": torch.tensor(torch.nan)} for o in s], "'step' of '.*' is tensor.nan"),
        (lambda s: [{**o, "step": -3} for o in s], "'step' of '.*' is -3"),
        (lambda s: [{**o, "step": 2.5} for o in s], "'step' of '.*' is 2.5"),
        (lambda s: [{**o, "step": "7 of 9"} for o in s], "'step' of '.*' is 7 of 9"),
        (lambda s: [1, *s[1:]], "floating-point 'exp_avg'"),
    ],
)
def test_moments_that_adam_cannot_have_are_named(damage, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"warmup\.checkpoints\.0\.optimizer: .*{message}"):
        read(state(damage(slots())), tmp_path)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"betas": (0.9, 0.999, 0.9999)}, "AdEMAMix"),
        ({"betas": (0.9, torch.nan)}, "betas"),
        ({"betas": (1.5, 0.999)}, "betas"),
        ({"betas": 0.9}, "betas"),
        ({"eps": -1.0}, "eps"),
        ({"eps": "small"}, "eps"),
        ({"amsgrad": True}, "amsgrad"),
        ({"params": 4}, "numbered parameters"),
        ({"params": ["a", "b", "c", "d"]}, "numbered parameters"),
        ({"param_names": ["a"]}, "numbered parameters"),
    ],
)
def test_groups_that_adam_cannot_have_are_named(group, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read(state(slots(), **group), tmp_path)


def test_a_step_that_the_group_keeps_is_read_as_apex_and_deepspeed_keep_it(tmp_path):
    states = [{kind: one[kind] for kind in ("exp_avg", "exp_avg_sq")} for one in slots()]
    assert read(state(states, step=11), tmp_path).step == 11
    with pytest.raises(ConfigError, match="after how many steps"):
        read(state(states), tmp_path)


def test_constants_of_safetensors_are_checked_too(tmp_path):
    tensors = {f"{n}.{k}": one[k] for n, one in zip(NAMES, slots(), strict=True) for k in ("exp_avg", "exp_avg_sq")}
    plain = {"beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8, "step": 3}
    for text, message in (
        (json.dumps({**plain, "beta1": float("nan")}), "betas"),
        (json.dumps({**plain, "step": 1e300}), "step"),
        (json.dumps({**plain, "epsilon": 10**400}), "eps"),
        ("[" * 100_000, "metadata"),
        ("[]", "metadata"),
    ):
        save_file(tensors, tmp_path / "m.safetensors", metadata={"adam": text})
        with pytest.raises(ConfigError, match=message):
            read_moments(tmp_path / "m.safetensors", PARAMETERS, "k")


def test_flipped_and_cut_files_end_in_a_message(tmp_path):
    torch.save(state([{k: v[:4] if v.dim() else v for k, v in one.items()} for one in slots()]), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    generator = torch.Generator().manual_seed(5)
    for number in range(200):
        place = int(torch.randint(len(data), (), generator=generator))
        torn = data[:place] if number % 4 == 0 else data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]
        (tmp_path / "optimizer.pt").write_bytes(torn)
        # The shapes do not fit, so that a flip that does no harm is refused as well.
        with pytest.raises((ConfigError, ArtifactMismatch), match=r"^k: "):
            read_moments(tmp_path / "optimizer.pt", PARAMETERS, "k")


def dcp_state(tmp_path) -> tuple[Path, dict]:
    """A sharded state as FSDP2 and accelerate write it: really by torch.distributed.checkpoint."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save

    model = torch.nn.Module()
    for name, shape in PARAMETERS:
        owner = model
        *path, last = name.split(".")
        for piece in path:
            if piece not in dict(owner.named_children()):
                owner.add_module(piece, torch.nn.Module())
            owner = owner.get_submodule(piece)
        owner.register_parameter(last, torch.nn.Parameter(torch.randn(shape)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(2):
        torch.stack([(p**2).sum() + p.sum() for p in model.parameters()]).sum().backward()
        optimizer.step()
    expected = {name: optimizer.state[p] for name, p in model.named_parameters()}
    tree = {"optimizer": get_optimizer_state_dict(model, optimizer)}
    save(tree, checkpoint_id=tmp_path / "optimizer_0", no_dist=True)
    return tmp_path / "optimizer_0", expected


def test_sharded_states_of_fsdp2_are_refused_with_a_command_that_makes_them_readable(tmp_path):
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    folder, expected = dcp_state(tmp_path)
    assert (folder / ".metadata").exists()
    with pytest.raises(ConfigError, match=r"sharded state.*format_utils dcp_to_torch .*optimizer_0 optimizer\.pt"):
        read_moments(folder, PARAMETERS, "k")
    dcp_to_torch_save(folder, tmp_path / "optimizer.pt")
    found = read_moments(tmp_path / "optimizer.pt", PARAMETERS, "k")
    assert found.step == 2
    for name in NAMES:
        assert torch.equal(found.exp_avg[name], expected[name]["exp_avg"])
        assert torch.equal(found.exp_avg_sq[name], expected[name]["exp_avg_sq"])


@pytest.mark.parametrize(
    "name",
    [
        "global_step100/zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "global_step100/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
        "global_step100/mp_rank_00_model_states.pt",
    ],
)
def test_parts_of_a_zero_checkpoint_are_refused_with_the_conversion(name, tmp_path):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"a pickle that is not opened")
    for path in (tmp_path / name, (tmp_path / name).parent, tmp_path):
        with pytest.raises(ConfigError, match=r"DeepSpeed ZeRO.*ds_to_universal\.py.*docs/checkpoints\.md"):
            read_moments(path, PARAMETERS, "k")


def test_the_lines_in_the_docs_make_a_universal_checkpoint_readable(tmp_path, monkeypatch):
    for name, one in zip(NAMES, slots(), strict=True):
        folder = tmp_path / "universal" / "zero" / name
        folder.mkdir(parents=True)
        for kind in ("exp_avg", "exp_avg_sq"):
            torch.save({"param": one[kind], "cat_dim": 0}, folder / f"{kind}.pt")
        torch.save({"param": torch.zeros(3), "cat_dim": 0}, folder / "fp32.pt")
        torch.save(torch.tensor(7.0), folder / "step.pt")
    torch.save({"param_groups": []}, tmp_path / "universal" / "zero" / "optimizer_state.pt")
    for path in (tmp_path / "universal", tmp_path / "universal" / "zero"):
        with pytest.raises(ConfigError, match="DeepSpeed|is a folder"):
            read_moments(path, PARAMETERS, "k")
    (code,) = re.findall(r"```python\n(# universal.*?)```", DOCS.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "convert.py").write_text(code)
    runpy.run_path(str(tmp_path / "convert.py"))
    assert len(load_file(tmp_path / "moments.safetensors")) == 2 * len(NAMES)
    found = read_moments(tmp_path / "moments.safetensors", PARAMETERS, "k")
    assert (found.step, found.beta1, found.beta2, found.epsilon) == (7, 0.9, 0.999, 1e-8)
    for name, one in zip(NAMES, slots(), strict=True):
        assert torch.equal(found.exp_avg[name], one["exp_avg"])


def test_a_git_lfs_pointer_is_named(tmp_path):
    for name in ("optimizer.pt", "optimizer.safetensors"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
        with pytest.raises(ConfigError, match="git lfs pull"):
            read_moments(tmp_path / name, PARAMETERS, "k")
