"""Greedy decoding written out: one prompt, no cache, no padding, a whole forward pass for every token."""

from __future__ import annotations

import torch


def greedy(model, prompt, ends, max_new_tokens: int) -> list[int]:
    """The tokens written after `prompt`, up to and without the first of `ends`."""
    ids = [int(token) for token in prompt]
    written: list[int] = []
    with torch.no_grad():
        for _ in range(max_new_tokens):
            logits_V = model(input_ids=torch.tensor([ids + written]), use_cache=False).logits[0, -1]
            token = int(logits_V.argmax())
            if token in ends:
                break
            written.append(token)
    return written
