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

    from influray.model.batch import make_batch
    from influray.model.example_losses import by_example, mean_losses, trained_logits

    loss_N = np.zeros(len(examples))
    match_N = np.zeros(len(examples), bool)
    decoder: Any = model.eval()
    device = decoder.get_input_embeddings().weight.device
    for indices in plan_batches([example.tokens for example in examples], token_budget):
        batch = make_batch([examples[i] for i in indices], device)
        with torch.no_grad():
            logits_nV = trained_logits(model, batch)
            loss_N[indices] = mean_losses(logits_nV, batch).double().cpu().numpy()
            right_n = logits_nV.argmax(-1) == batch.label_n.to(logits_nV.device)
            right_BS = by_example(right_n.float(), batch, fill=1.0) > 0
            match_N[indices] = right_BS.all(1).cpu().numpy()
        on_done(len(indices))
    return loss_N, match_N
