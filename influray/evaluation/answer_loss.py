"""Loss of held-out answers, and whether the model would say them word for word.

Both come from one forward pass with the right answer as input. At every trained position the most likely token is
the right one if and only if greedy decoding from the prompt writes exactly this answer: the first token where it
would leave the answer is the first position where the argmax differs.

Shape suffixes: N examples, B batch, S tokens, n trained positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.data.batches import plan_batches
from influray.protocols import TokenizedExample

if TYPE_CHECKING:
    from torch import nn


def score_answers(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    token_budget: int,
    on_done: Callable[[int], None] = lambda count: None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (mean loss over the trained tokens, teacher-forced match) of each example, [N] float64 and bool.

    A match means that the argmax at every trained position, the end token included where it is trained, is the
    token that stands there; equal logits go to the lower token. Batches take at most `token_budget` padded tokens.
    `on_done` is called after each with how many examples it had.
    """
    import torch
    import torch.nn.functional as F

    from influray.model.batch import make_batch
    from influray.model.example_losses import by_example
    from influray.model.piecewise_head import PiecewiseHead

    loss_N = np.zeros(len(examples))
    match_N = np.zeros(len(examples), bool)
    given: Any = model.eval()
    base = given.get_base_model() if hasattr(given, "get_base_model") else given  # its adapter stays in it
    head, device = PiecewiseHead(base), base.get_input_embeddings().weight.device
    for indices in plan_batches([example.tokens for example in examples], token_budget):
        batch = make_batch([examples[i] for i in indices], device)
        # A piece at a time: prompts are most of a batch, and logits of a whole one can be larger than the model.
        pieces = [
            (F.cross_entropy(logits_pV, label_p, reduction="none"), logits_pV.argmax(-1) == label_p)
            for logits_pV, label_p in head.pieces(batch)
        ]
        loss_n, right_n = map(torch.cat, zip(*pieces, strict=True))
        loss_B = by_example(loss_n, batch).sum(1) / batch.loss_tokens_B.to(loss_n)
        loss_N[indices] = loss_B.double().cpu().numpy()
        match_N[indices] = (by_example(right_n.float(), batch, fill=1.0) > 0).all(1).cpu().numpy()
        on_done(len(indices))
    return loss_N, match_N
