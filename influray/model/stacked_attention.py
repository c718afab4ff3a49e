"""Attention within the stacks of a packed batch: each attends as a padded batch of its own would.

All other layers take the line of a packed batch as it is. Attention functions and masks are looked up in transformers'
tables by the name that a model's config gives; while a packed batch runs, that is a name of ours, under which every
stack goes to the function that the model had before, with the mask that the model asks for. So attention keeps its
fast causal kernels and costs what the stacks cost, where a block-diagonal mask would cost the square of the line, and
an example that is not finite reaches no other.

Shape suffixes: T tokens of the line, b examples and s tokens of one stack, h heads, d head width.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from influray.model.batch import Batch, at_trained, make_batch, make_packed_batch
from influray.model.piecewise_head import off_by
from influray.protocols import TokenizedExample

NAME = "influray_stacks"
_INTERNAL = "_attn_implementation_internal"  # of a config; its public setter changes sub-configs too

Sizes = Sequence[tuple[int, int]]


class _CannotStack(RuntimeError):
    """A model does something else with attention than transformers' own."""


@dataclass(frozen=True, slots=True)
class _Running:
    name: str  # of the attention that the config had before
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class _StackMasks:
    """What layers are handed in place of a mask."""

    masks: tuple[Tensor | None, ...]  # per stack, [1, 1, s, s]; None = plain causal


# By id of the config, which attention and masks are both given. Not by thread: a GPU's backward, where checkpointed
# layers run again, has a thread of its own.
_RUNNING: dict[int, _Running] = {}


@contextmanager
def attending_by_stack(model: Any, sizes: Sizes) -> Iterator[None]:
    """Let a model's attention see batches [1, T] as stacks of `sizes` (examples, tokens of each), in order."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _masks)
    configs = {id(config): config for config in (getattr(m, "config", None) for m in model.modules())}
    before: dict[int, str] = {key: name for key, c in configs.items() if (name := getattr(c, _INTERNAL, None))}
    try:
        for key, name in before.items():
            setattr(configs[key], _INTERNAL, NAME)
            _RUNNING[key] = _Running(name, sizes)
        yield
    finally:
        for key, name in before.items():
            setattr(configs[key], _INTERNAL, name)
            _RUNNING.pop(key, None)


def stacking_problem(model: Any, logits: Callable[[Batch], Tensor]) -> str:
    """Return why a model's attention cannot go by stack, "" where it can.

    A probe compares the logits of packed examples with those of each alone, in two companies. `logits` makes all
    logits of a batch, [B, S, V].
    """
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    if not all("position_ids" in inspect.signature(part.forward).parameters for part in (model, decoder)):
        return "it takes no position_ids"
    try:
        return _probe(model, logits)
    # What a model that knows nothing of this may do; a packed batch of it is no option then.
    except (_CannotStack, RuntimeError, TypeError, ValueError, AttributeError, LookupError) as error:
        return f"a packed probe fails with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


@torch.no_grad()
def _probe(model: Any, logits: Callable[[Batch], Tensor]) -> str:
    embedding = model.get_input_embeddings().weight
    for shift in (0, 7):
        first, *others = (_probe_example(n, shift if n else 0, embedding.shape[0]) for n in range(4))
        stacks = [[first, others[0]], others[1:]]
        packed = make_packed_batch(stacks, embedding.device)
        assert packed.packing is not None
        with attending_by_stack(model, packed.packing.sizes):
            found = at_trained(logits(packed), packed)
        alone = [make_batch([example], embedding.device) for example in (first, *others)]
        expected = torch.cat([at_trained(logits(batch), batch) for batch in alone])
        if error := off_by(found, expected):
            return f"logits of packed examples are off by {error:.3g}"
    return ""


def _probe_example(n: int, shift: int, vocabulary: int) -> TokenizedExample:
    tokens = (np.arange(1, (5, 9, 7, 12)[n] + 1, dtype=np.int32) * (n + 3) + shift) % vocabulary
    return TokenizedExample(n, tokens, np.arange(len(tokens)) > 0)


def _attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, *args: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """Return what the module's own attention makes of each stack, [1, T, h, d], as transformers calls it."""
    running = _RUNNING[id(module.config)]
    T = sum(b * s for b, s in running.sizes)
    kwargs.pop("position_ids", None)  # of the line; what attention does with them is to look for packed sequences
    if not isinstance(attention_mask, _StackMasks):
        raise _CannotStack(f"{type(module).__name__} makes its own mask")
    if any(isinstance(given, Tensor) and T in given.shape for given in (*args, *kwargs.values())):
        raise _CannotStack(f"{type(module).__name__} gives its attention more than query, key and value")
    attend = _own_attention(module, running.name)
    stacked = [_by_stack(line, running.sizes) for line in (query, key, value)]
    found = []
    for (b, s), q, k, v, mask in zip(running.sizes, *stacked, attention_mask.masks, strict=True):
        mask = mask if mask is None else mask.to(q.device)
        out_bshd = attend(module, q, k, v, mask, *args, **kwargs)[0]
        found.append(out_bshd.reshape(1, b * s, *out_bshd.shape[2:]))
    return torch.cat(found, 1), None


def _by_stack(line_1hTd: Tensor, sizes: Sizes) -> list[Tensor]:
    """Return views [b, h, s, d]. By split and not by slices, each of whose backwards would fill a whole line."""
    parts = line_1hTd[0].split([b * s for b, s in sizes], 1)
    return [part.unflatten(1, size).transpose(0, 1) for part, size in zip(parts, sizes, strict=True)]


def _own_attention(module: Any, name: str) -> Callable[..., Any]:
    """Return the attention function that the module's file would look up; "eager" is one of its own."""
    from transformers import AttentionInterface

    names = vars(sys.modules[type(module).__module__])
    table = names.get("ALL_ATTENTION_FUNCTIONS") or AttentionInterface()
    eager: Any = names.get("eager_attention_forward")
    if name == "eager" and eager is None:
        raise _CannotStack(f"the eager attention of {type(module).__name__} cannot be found")
    return table.get_interface(name, eager)


def _masks(
    *, config: Any, mask_function: Callable[..., Any], attention_mask: Any = None, device: Any, **kwargs: Any
) -> _StackMasks:
    """Return the mask of each stack, as transformers would make that of a batch.

    The examples of a stack are as long and begin at the same position, so one mask does for all.
    """
    from transformers import AttentionMaskInterface

    running = _RUNNING[id(config)]
    if attention_mask is not None:
        raise _CannotStack("its line has a mask of padding")
    table = AttentionMaskInterface()
    if running.name not in table:
        return _StackMasks((None,) * len(running.sizes))
    masks, begin = [], 0
    for b, s in running.sizes:
        own = {"batch_size": 1, "q_length": s, "kv_length": s, "q_offset": begin, "kv_offset": begin}
        given = {**kwargs, **own, "allow_is_causal_skip": False}
        mask = table[running.name](mask_function=mask_function, config=config, device=device, **given)
        masks.append(None if running.name == "sdpa" and _is_causal(mask) else mask)
        begin += b * s
    return _StackMasks(tuple(masks))


def _is_causal(mask_11ss: Tensor) -> bool:
    return torch.equal(mask_11ss[0, 0], torch.ones_like(mask_11ss[0, 0]).tril())
