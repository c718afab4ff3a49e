"""The fused inner step against PyTorch's operations and a plain loop: on a CPU through triton's interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.config import FeaturesConfig
from influray.features.fused_step import FusedStep, fused_problem, fused_step
from influray.features.gradient import GradientFeaturizer
from influray.features.inner_step import TorchStep
from influray.features.preconditioners import (
    AdamDirection,
    AdamDirections,
    plain_direction,
    sign_direction,
)
from influray.features.projectors.hadamard import HadamardProjector
from influray.features.projectors.sparse_jl import SparseJLProjector
from influray.model.checkpoints import AdamMoments
from influray.model.tracked_weights import TrackedWeight, lora_weights
from influray.protocols import ConfigError
from tests.reference.adam_direction import adam_number
from tests.reference.inner_step import loop_step
from tests.tiny import tiny_llama
from tests.unit.test_example_gradients import ATTENTION, mixed_batch, with_lora

pytest.importorskip("triton", reason="triton is not installed; make kernels puts it aside and runs this")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BETA1, BETA2, EPSILON = 0.9, 0.99, 1e-8


def weight_of(p, offset=0):
    return TrackedWeight("w", torch.nn.Linear(p, 1, bias=False, device=DEVICE), offset)


def direction_of(kind, first_p, second_p):
    """("sgd" | "sign" | "less" | "adamw", with momentum?) -> the direction of every weight."""
    name, momentum = kind
    if name in ("sgd", "sign"):
        return plain_direction if name == "sgd" else sign_direction
    options = {"beta1": BETA1, "beta2": BETA2, "epsilon": EPSILON, "epsilon_mode": name, "momentum": momentum}
    return AdamDirections({"w": AdamDirection(first_p.to(DEVICE), second_p.to(DEVICE), **options)})


KINDS = [("sgd", True), ("sign", True), ("less", True), ("less", False), ("adamw", True), ("adamw", False)]


def run(step, grad_Bp, offset, dimension, started=0.0):
    B = len(grad_Bp)
    out_BD = torch.full((B, dimension), started, device=DEVICE)
    square_Bt = torch.zeros(B, step.parts, dtype=torch.float64, device=DEVICE)
    step.add(out_BD, square_Bt, weight_of(grad_Bp.shape[1], offset), grad_Bp.to(DEVICE))
    return out_BD.cpu(), square_Bt.cpu().sum(1)


def both(direction, dimension, parameters, seed, nonzeros):
    projector = SparseJLProjector(dimension, parameters, seed, DEVICE, nonzeros=nonzeros)
    return FusedStep(direction, projector, torch.device(DEVICE)), TorchStep(direction, projector)


@st.composite
def problems(draw):
    dimension = draw(st.sampled_from([1, 7, 64, 128, 200]))
    return {
        "rows": draw(st.integers(1, 19)),
        "p": draw(st.integers(1, 3 * dimension + 5)),
        "offset": draw(st.integers(0, 4 * dimension)),
        "dimension": dimension,
        "nonzeros": draw(st.integers(1, min(4, dimension))),
        "seed": draw(st.integers(-(2**63), 2**63 - 1)),
    }


def drawn(problem, generator):
    """Gradients over several magnitudes, with zeros, and moments as training leaves them."""
    shape = problem["rows"], problem["p"]
    grad_Bp = torch.randn(shape, generator=generator) * 10 ** torch.empty(shape).uniform_(-6, 0, generator=generator)
    grad_Bp *= torch.rand(shape, generator=generator) > 0.1
    first_p = 1e-3 * torch.randn(problem["p"], generator=generator)
    return grad_Bp, first_p, 0.1 * first_p**2


@settings(max_examples=15, deadline=None)
@given(problem=problems(), kind=st.sampled_from(KINDS), number=st.integers(0, 2**31))
def test_it_is_the_step_in_torch_and_the_plain_loop(problem, kind, number):
    grad_Bp, first_p, second_p = drawn(problem, torch.Generator().manual_seed(number))
    offset, D, seed, s = (problem[name] for name in ("offset", "dimension", "seed", "nonzeros"))
    fused, plain = both(direction_of(kind, first_p, second_p), D, offset + problem["p"], seed, s)
    found_BD, square_B = run(fused, grad_Bp, offset, D)
    torch_BD, torch_B = run(plain, grad_Bp, offset, D)

    def direction(g, place, of=float):
        if kind[0] in ("sgd", "sign"):
            return of(g) if kind[0] == "sgd" else float(np.sign(of(g)))
        return adam_number(of(g), of(first_p[place].item()), second_p[place].item(), BETA1, BETA2, EPSILON, *kind)

    loop_rows, loop_squares = loop_step(grad_Bp.tolist(), direction, offset, D, seed, s)
    loop_BD = torch.tensor(loop_rows, dtype=torch.float64)
    # Sums cancel, so errors are measured against the length of what is added up.
    sizes = [[direction(g, place, of=abs) for place, g in enumerate(row)] for row in grad_Bp.tolist()]
    allowed = 1e-6 * max(1, s * problem["p"] / D) * torch.tensor(sizes, dtype=torch.float64).norm(dim=1, keepdim=True)
    assert ((found_BD - torch_BD).double().abs() <= allowed).all()
    assert ((found_BD - loop_BD).abs() <= allowed).all()
    torch.testing.assert_close(square_B, torch_B, rtol=1e-12, atol=0)
    torch.testing.assert_close(square_B, torch.tensor(loop_squares, dtype=torch.float64), rtol=1e-12, atol=0)


@settings(max_examples=10, deadline=None)
@given(problem=problems(), name=st.sampled_from(["sgd", "sign"]), number=st.integers(0, 2**31))
def test_signs_and_columns_have_the_bits_of_the_projector(problem, name, number):
    """Whole numbers add up exactly in any order, so a single sign or column that is another one shows."""
    D, s = problem["dimension"], 4 if problem["nonzeros"] == 4 else 1  # of which the root is exact
    generator = torch.Generator().manual_seed(number)
    grad_Bp = torch.randint(-1000, 1000, (problem["rows"], problem["p"]), generator=generator).float()
    parameters = problem["offset"] + problem["p"]
    fused, plain = both(direction_of((name, True), None, None), D, parameters, problem["seed"], s)
    found, expected = (run(step, grad_Bp, problem["offset"], D, started=3.0) for step in (fused, plain))
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_coordinates_beyond_32_bits_keep_their_signs_and_columns():
    D, offset = 2**13 + 3, 2**33 + 77
    grad_Bp = torch.randint(-1000, 1000, (2, 300), generator=torch.Generator().manual_seed(0)).float()
    fused, plain = both(plain_direction, D, offset + 300, 5, 1)
    found, expected = (run(step, grad_Bp, offset, D)[0] for step in (fused, plain))
    assert torch.equal(found, expected)
    assert found.abs().sum() == grad_Bp.abs().sum()


@pytest.mark.parametrize("nonzeros", [1, 3])
@pytest.mark.parametrize("kind", [("less", True), ("adamw", False)])
def test_a_row_has_the_same_bits_in_every_batch_and_spoils_no_other(kind, nonzeros):
    generator = torch.Generator().manual_seed(0)
    grad_Bp, first_p, second_p = drawn({"rows": 9, "p": 150}, generator)  # a program has eight rows
    fused, _ = both(direction_of(kind, first_p, second_p), 100, 200, 0, nonzeros)
    whole = run(fused, grad_Bp, 50, 100)
    for some in ([0], [4, 3], [8]):
        part = run(fused, grad_Bp[some], 50, 100)
        assert torch.equal(part[0], whole[0][some])
        assert torch.equal(part[1], whole[1][some])
    grad_Bp[4, 10], grad_Bp[4, 11] = float("nan"), float("inf")
    poisoned = run(fused, grad_Bp, 50, 100)
    others = [b for b in range(9) if b != 4]
    assert torch.equal(poisoned[0][others], whole[0][others])
    assert torch.equal(poisoned[1][others], whole[1][others])
    assert not torch.isfinite(poisoned[0][4]).all()
    assert not torch.isfinite(poisoned[1][4])


def test_nothing_of_no_rows():
    fused, _ = both(plain_direction, 8, 40, 0, 1)
    assert run(fused, torch.zeros(0, 20), 0, 8)[0].shape == (0, 8)


def features_config(**projector):
    return FeaturesConfig.model_validate({"projector": {"name": "sparse_jl", "dimension": 200, **projector}})


@pytest.mark.parametrize("options", [{}, {"nonzeros": 3}])
@pytest.mark.parametrize("direction", ["adam", "sgd"])
def test_features_are_those_of_the_step_in_torch(direction, options):
    def made(step):
        model = with_lora(tiny_llama(), ATTENTION).to(DEVICE)
        generator = torch.Generator().manual_seed(5)
        first = {w.name: 1e-2 * torch.randn(w.module.weight.shape, generator=generator) for w in lora_weights(model)}
        second = {name: 0.1 * value**2 for name, value in first.items()}
        moments = AdamMoments(first, second, beta1=0.9, beta2=0.99, epsilon=1e-8, step=10)
        settings = features_config(options=options)
        featurizer = GradientFeaturizer(model, settings, moments, direction, DEVICE, step)
        assert featurizer.step == step
        return featurizer.projected(mixed_batch())

    fused, plain = made("fused"), made("torch")
    for found, expected in zip(fused, plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("sgd", None, ""),
        ("sign", None, "triton's kernel is off by"),
        ("sgd", RuntimeError("Failed to find C compiler."), "cannot run its kernel here (RuntimeError: Failed to find"),
    ],
    ids=["as it is", "wrong numbers", "no compiler"],
)
def test_it_is_tried_before_it_is_used(kind, error, said, monkeypatch):
    add = FusedStep.add

    def changed(step, *arguments):
        if error is not None:
            raise error
        step._kind = {"sgd": 0, "sign": 1}[kind]
        add(step, *arguments)

    monkeypatch.setattr(FusedStep, "add", changed)
    made = fused_step([weight_of(10)], plain_direction, SparseJLProjector(8, 10, 0, DEVICE))
    assert said in made if said else isinstance(made, FusedStep)


def test_what_it_cannot_take_is_said():
    model = with_lora(tiny_llama(dtype=torch.float64), ATTENTION).to(DEVICE)
    with pytest.raises(ConfigError, match="'fused' cannot be had: gradients are float64"):
        GradientFeaturizer(model, features_config(), None, "sgd", DEVICE, "fused")
    weights = [weight_of(10)]
    assert "sparse_jl" in fused_problem(weights, plain_direction, HadamardProjector(8, 10, 0))
    projector = SparseJLProjector(8, 10, 0)
    assert "direction" in fused_problem(weights, lambda weight, grad: grad, projector)
    elsewhere = TrackedWeight("v", torch.nn.Linear(3, 1, bias=False, device="meta"), 10)
    assert "several devices" in fused_problem([*weights, elsewhere], plain_direction, projector)
    assert fused_problem(weights, plain_direction, projector) == ""


COMPILE = """
import re, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from influray.features import fused_kernel as k

pointers = {"grad": "*fp32", "first": "*fp32", "second": "*fp32", "key": "*i64", "shift": "*i32", "out": "*fp32", "square": "*fp64"}
scalars = {"B": "i32", "p": "i32", "offset": "i64", "first_block": "i32", "last_block": "i32"}
floats = {"gain": "fp32", "outside": "fp32", "scale": "fp32"}
for capability in (80, 90):
    for direction, outside, nonzeros in ((k.ADAM, False, 1), (k.ADAM, True, 4), (k.SIGN, False, 1), (k.SGD, False, 1)):
        fixed = {"D": 8192, "DIRECTION": direction, "MOMENTUM": True, "OUTSIDE": outside, "NONZEROS": nonzeros, "ROWS": k.ROWS, "COLUMNS": k.COLUMNS}
        signature = {**pointers, **scalars, **floats, **dict.fromkeys(fixed, "constexpr")}
        source = ASTSource(k.inner_step, signature, fixed)
        made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": k.WARPS, "enable_fp_fusion": False})
        text = made.asm["ptx"]
        assert made.asm["cubin"], "no machine code"
        assert not re.search(r"\\b(atom|red)\\.", text), "an atomic operation"
        assert not re.search(r"\\bfma\\.rn(\\.ftz)?\\.f32", text), "a fused product and sum"
        print("compiled", capability, direction, outside, nonzeros)
"""


def test_it_compiles_for_gpus_without_atomics():
    """No GPU is needed for that; the interpreter must be off."""
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        capture_output=True,
        text=True,
        check=False,
        cwd=root,
        env={**without, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiled") == 8
