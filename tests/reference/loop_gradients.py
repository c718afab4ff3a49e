"""Gradients one example at a time: no batch, no padding, no hooks. Slow and obvious."""

from __future__ import annotations

import torch


def loop_gradient(model, example) -> tuple[torch.Tensor, float]:
    """Return (the gradient of the mean loss over trained tokens for all LoRA matrices, flat, [P]; the loss)."""
    named = [(name, p) for name, p in model.named_parameters() if "lora_" in name]
    parameters = [p.requires_grad_() for _, p in named]
    ids = torch.tensor(example.input_ids_S.tolist())
    log_prob = torch.log_softmax(model(input_ids=ids[None], use_cache=False).logits[0].double(), dim=-1)
    total = 0.0
    for s in range(len(ids)):
        if example.loss_mask_S[s]:
            total = total - log_prob[s - 1, ids[s]]
    loss = total / example.loss_tokens
    gradients = torch.autograd.grad(loss, parameters)
    for p in parameters:
        p.requires_grad_(False)
    return torch.cat([g.reshape(-1) for g in gradients]), float(loss.detach())


def loop_gradients(model, examples) -> torch.Tensor:
    return torch.stack([loop_gradient(model, example)[0] for example in examples])
