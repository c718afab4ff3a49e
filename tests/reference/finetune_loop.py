"""Fine-tuning written out: one example at a time, Adam by its formula. Slow and obvious."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from influray.protocols import TokenizedExample


def example_loss(model, example: TokenizedExample) -> torch.Tensor:
    """The mean over its trained tokens of one example's negative log-likelihoods."""
    ids_S = torch.from_numpy(example.input_ids_S.astype("int64"))
    logits_SV = model(input_ids=ids_S[None], use_cache=False).logits[0]
    losses = [F.cross_entropy(logits_SV[s - 1], ids_S[s]) for s in range(1, len(ids_S)) if example.loss_mask_S[s]]
    return torch.stack(losses).mean()


def train(model, steps: Sequence[Sequence[TokenizedExample]], rates, config) -> dict:
    """AdamW with bias correction and decoupled decay over the given steps; returns losses and moments by name."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    exp_avg = {name: torch.zeros_like(p) for name, p in trained.items()}
    exp_avg_sq = {name: torch.zeros_like(p) for name, p in trained.items()}
    recorded = []
    for number, (step, rate) in enumerate(zip(steps, rates, strict=True), start=1):
        model.zero_grad()
        loss = torch.stack([example_loss(model, example) for example in step]).mean()
        loss.backward()
        recorded.append(loss.item())
        norm = math.sqrt(sum(p.grad.square().sum().item() for p in trained.values()))
        scale = min(1.0, config.max_grad_norm / (norm + 1e-6)) if config.max_grad_norm else 1.0
        with torch.no_grad():
            for name, p in trained.items():
                grad = p.grad * scale
                exp_avg[name] = config.adam_beta1 * exp_avg[name] + (1 - config.adam_beta1) * grad
                exp_avg_sq[name] = config.adam_beta2 * exp_avg_sq[name] + (1 - config.adam_beta2) * grad**2
                mean = exp_avg[name] / (1 - config.adam_beta1**number)
                root = (exp_avg_sq[name] / (1 - config.adam_beta2**number)).sqrt() + config.adam_epsilon
                p -= rate * config.weight_decay * p + rate * mean / root
    return {"losses": recorded, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
