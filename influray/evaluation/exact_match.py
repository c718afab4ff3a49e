"""Exact match by greedy generation, and the rule by which a generated text matches an answer.

Shape suffixes: B batch, S tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.data.batches import plan_batches
from influray.protocols import TokenizedExample

if TYPE_CHECKING:
    from torch import nn

FINAL = "####"  # what GSM8K writes before the final answer of a chain of thought


def matches(generated: str, answer: str) -> bool:
    """Return whether a generated text gives the answer.

    All texts are stripped of white space at both ends; nothing else is changed, so case, commas and units count.
    It matches if the whole text equals the answer, or, where it holds "####", if what stands after the last "####"
    does, or else if its last line does. An answer that holds "####" itself stands for what follows its last one.
    """
    wanted = answer.rpartition(FINAL)[2].strip()
    text = generated.strip()
    if text in (wanted, answer.strip()):
        return True
    if FINAL in text:
        return text.rpartition(FINAL)[2].strip() == wanted
    return bool(text) and text.splitlines()[-1].strip() == wanted


def prompt_of(example: TokenizedExample) -> np.ndarray:
    """Return the tokens before the last trained span: what the model is given to answer, int32."""
    trained = np.flatnonzero(example.loss_mask_S)
    gaps = np.flatnonzero(np.diff(trained) > 1)
    start = trained[gaps[-1] + 1] if len(gaps) else trained[0]
    return example.input_ids_S[:start]


def end_tokens(tokenizer: Any) -> frozenset[int]:
    """Return the tokens that end a generated turn: every special one, since an answer is text and holds none."""
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return frozenset({*tokenizer.all_special_ids, *added})


def greedy_decode(
    model: nn.Module,
    prompts: Sequence[np.ndarray],
    ends: Collection[int],
    max_new_tokens: int,
    token_budget: int,
    on_done: Callable[[int], None] = lambda count: None,
) -> list[np.ndarray]:
    """Return what greedy decoding writes after each prompt, int32, without the end token that stopped it.

    At each step the most likely token is taken, equal logits going to the lower one; nothing of the model's own
    generation settings (temperature, penalties) takes part. Prompts of one batch are padded on the left, and a
    batch holds at most `token_budget` tokens, those to be generated counted in.
    `on_done` is called after each with how many prompts it had.
    """
    decoded: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for indices in plan_batches([len(prompt) + max_new_tokens for prompt in prompts], token_budget):
        for index, tokens in zip(
            indices, _decode_batch(model, [prompts[i] for i in indices], ends, max_new_tokens), strict=True
        ):
            decoded[index] = tokens
        on_done(len(indices))
    return decoded


def greedy_exact_match(
    model: nn.Module,
    tokenizer: Any,
    examples: Sequence[TokenizedExample],
    answers: Sequence[str],
    *,
    max_new_tokens: int,
    token_budget: int,
    on_done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Return whether the text that the model generates for each example matches its answer, [N] bool.

    The prompt is all before the example's last trained turn; see `matches` for the rule.
    """
    prompts = [prompt_of(example) for example in examples]
    decoded = greedy_decode(model, prompts, end_tokens(tokenizer), max_new_tokens, token_budget, on_done)
    texts = [tokenizer.decode(tokens.tolist(), skip_special_tokens=True) for tokens in decoded]
    return np.array([matches(text, answer) for text, answer in zip(texts, answers, strict=True)], dtype=bool)


def _decode_batch(
    model: nn.Module, prompts: Sequence[np.ndarray], ends: Collection[int], max_new_tokens: int
) -> list[np.ndarray]:
    import torch
    from transformers import DynamicCache

    decoder: Any = model.eval()
    device = decoder.get_input_embeddings().weight.device
    B, S = len(prompts), max(len(prompt) for prompt in prompts)
    # Padding repeats the prompt's own first token, so that no embedding comes in that the prompt does not have.
    ids_BS = np.stack([np.pad(p, (S - len(p), 0), constant_values=p[0]) for p in prompts]).astype(np.int64)
    attended_BS = np.stack([np.arange(S) >= S - len(p) for p in prompts]).astype(np.int64)
    tokens = torch.from_numpy(ids_BS).to(device)
    attended = torch.from_numpy(attended_BS).to(device)
    places = (attended.cumsum(1) - 1).clamp(min=0)
    stops = torch.tensor(sorted(ends), device=device)
    cache = DynamicCache(config=decoder.config)
    written: list[torch.Tensor] = []
    done_B = torch.zeros(B, dtype=torch.bool, device=device)
    with torch.no_grad():
        for _ in range(max_new_tokens):
            output = model(
                input_ids=tokens, attention_mask=attended, position_ids=places, past_key_values=cache, use_cache=True
            )
            next_B = output.logits[:, -1].argmax(-1).to(device)
            written.append(next_B)
            done_B |= torch.isin(next_B, stops)
            if bool(done_B.all()):
                break
            tokens = next_B[:, None]
            attended = torch.cat([attended, attended.new_ones(B, 1)], 1)
            places = places[:, -1:] + 1
    rows = torch.stack(written, 1).cpu().numpy().astype(np.int32)
    return [row[: _first(np.isin(row, list(ends)))] for row in rows]


def _first(hits: np.ndarray) -> int:
    return int(hits.argmax()) if hits.any() else len(hits)
