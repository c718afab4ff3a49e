"""Representations, losses and EL2N one example at a time: no batch, no padding, float64. Slow and obvious."""

from __future__ import annotations

import math

import torch


def loop_representation(model, example, weight) -> torch.Tensor:
    """Return sum of weight(s, L) h_s over the example's L tokens (s = 1..L) divided by the sum of weights, [H]."""
    ids = torch.tensor(example.input_ids_S.tolist())[None]
    with torch.no_grad():
        hidden_LH = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states[-1][0]
    L = len(hidden_LH)
    total = torch.zeros(hidden_LH.shape[1], dtype=torch.float64)
    for s in range(1, L + 1):
        total += weight(s, L) * hidden_LH[s - 1].double()
    return total / sum(weight(s, L) for s in range(1, L + 1))


def loop_losses(model, example) -> tuple[float, float]:
    """Return (mean loss, mean |softmax - one-hot|_2) over the trained tokens."""
    ids = example.input_ids_S.tolist()
    with torch.no_grad():
        logits_SV = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].double()
    losses, norms = [], []
    for s in range(len(ids)):
        if example.loss_mask_S[s]:
            p_V = torch.softmax(logits_SV[s - 1], -1).tolist()
            one_hot_V = [float(v == ids[s]) for v in range(len(p_V))]
            losses.append(-math.log(p_V[ids[s]]))
            norms.append(math.sqrt(sum((p - y) ** 2 for p, y in zip(p_V, one_hot_V, strict=True))))
    return sum(losses) / len(losses), sum(norms) / len(norms)
