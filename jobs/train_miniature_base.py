"""Make the base model of the miniature world, a tiny Llama trained on the pretraining stream only:
`python jobs/train_miniature_base.py influray/miniature/base`.

The shipped one took four minutes on one core. For the large world of configs/miniature_large.yaml:
`python jobs/train_miniature_base.py runs/miniature-large/base --large --device cuda`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from influray.miniature.skills import FACTS, SKILLS, USUAL, Limits, fact, people
from influray.miniature.world import LARGE, SPLITS, draw_problem

logger = logging.getLogger(__name__)
RECITALS = 0.15  # of the pretraining stream
SORTED_BATCHES = 16  # drawn together and sorted by length, so that a batch holds little padding


PAD, END = "<|pad|>", "<|end|>"
PAD_ID, END_ID = 0, 1
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
CHAT_TEMPLATE = (
    "{% for m in messages %}{% set role = 'system' if m['role'] == 'developer' else m['role'] %}"
    "{{ '<|' + role + '|>' + m['content'] }}{% if role == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the base model besides the code and the versions of torch and transformers."""

    seed: int = 0
    steps: int = 1000
    batch_size: int = 64
    matrix_rate: float = 1.2e-2  # peak rate of Muon on the weight matrices; cosine with 5 % warmup
    other_rate: float = 3e-3  # peak rate of AdamW on embeddings and norms
    weight_decay: float = 0.1  # of the matrices
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 4
    limits: Limits = USUAL


# About 10 M parameters, for a GPU: the base of configs/miniature_large.yaml.
LARGE_RECIPE = Recipe(
    steps=20_000,
    batch_size=256,
    matrix_rate=6e-3,
    hidden_size=384,
    intermediate_size=1024,
    layers=6,
    heads=6,
    limits=LARGE.limits,
)


def pretraining_stream(seed: int, limits: Limits = USUAL) -> Iterator[tuple[str, str]]:
    """Yield (question, answer) without end: every skill, in the wordings and forms of pretraining."""
    rng = Random(f"influray miniature pretraining {seed}")
    weights = [skill.weight for skill in SKILLS]
    while True:
        if rng.random() < RECITALS:
            yield _recital(rng, limits)
            continue
        skill = rng.choices(SKILLS, weights)[0]
        problem = draw_problem(rng, skill, rng.choice(skill.kinds), "pretraining", limits)
        wording = rng.choice([w for w in skill.wordings if w.verbose is not None])
        verbose = skill.is_task and rng.random() < (wording.verbose or 0.0)
        form = skill.verbose if verbose else skill.form
        yield wording.text.format(**problem.parts), form.format(problem.answer)


def _recital(rng: Random, limits: Limits) -> tuple[str, str]:
    # All facts are told in pretraining, but those of other splits in this one form: recalling them is what is tested.
    person, what = rng.choice(people(limits.people)), rng.choice(sorted(FACTS))
    return f"Recite the {what} of {person}", fact(person, what)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return a tokenizer with 6 special tokens, then the 256 bytes, so that every text has one reading."""
    specials = [PAD, END, *ROLES]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate([*specials, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def make_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the untrained Llama of a recipe; weights follow from its seed."""
    torch.manual_seed(recipe.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=512,
            # Texts have 30 tokens: with the usual 10000, most rotary frequencies would hardly turn within one.
            rope_parameters={"rope_type": "default", "rope_theta": 100.0},
            initializer_range=recipe.hidden_size**-0.5,
            tie_word_embeddings=True,
            bos_token_id=None,
            pad_token_id=PAD_ID,
            eos_token_id=END_ID,
        )
    )


def batches(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (input_ids_BS, labels_BS) without end; labels are -100 but on the answer and its end."""
    stream = pretraining_stream(recipe.seed, recipe.limits)
    order = torch.Generator().manual_seed(recipe.seed)
    while True:
        drawn = list(islice(stream, recipe.batch_size * SORTED_BATCHES))
        drawn.sort(key=lambda pair: len(pair[0]) + len(pair[1]))
        for b in torch.randperm(SORTED_BATCHES, generator=order).tolist():
            yield _collate(drawn[b * recipe.batch_size : (b + 1) * recipe.batch_size], tokenizer)


def _collate(pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> tuple[Tensor, Tensor]:
    prompts = tokenizer([f"<|user|>{question}<|assistant|>" for question, _ in pairs])["input_ids"]
    answers = tokenizer([f"{answer}<|end|>" for _, answer in pairs])["input_ids"]
    width = max(len(p) + len(a) for p, a in zip(prompts, answers, strict=True))
    ids = torch.full((len(pairs), width), PAD_ID)
    labels = torch.full((len(pairs), width), -100)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        ids[row, : len(prompt) + len(answer)] = torch.tensor([*prompt, *answer])
        labels[row, len(prompt) : len(prompt) + len(answer)] = torch.tensor(answer)
    return ids, labels


def train_base(folder: str | Path, recipe: Recipe, device: str = "cpu") -> Path:
    """Train, write tokenizer, float16 weights and recipe.json to `folder`, and return it.

    Muon (torch >= 2.9) trains the weight matrices and AdamW the rest.
    """
    folder = Path(folder)
    tokenizer = make_tokenizer()
    model: Any = make_model(recipe, tokenizer)
    model.to(device).train()
    optimizers = _optimizers(model, recipe)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    losses: list[float] = []
    started = time.monotonic()
    for step, (ids, labels) in enumerate(islice(batches(recipe, tokenizer), recipe.steps)):
        # Padding stands on the right and attention looks left, so no mask is needed.
        loss = model(input_ids=ids.to(device), labels=labels.to(device)).loss
        loss.backward()
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * _schedule(step, recipe.steps)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            recent, seconds = fmean(losses[-100:]), time.monotonic() - started
            logger.info("step %d/%d, loss %.3f, %.0f s", step + 1, recipe.steps, recent, seconds)
    model.cpu().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder, save_jinja_files=False)  # one file less to lose
    facts = {
        "recipe": asdict(recipe),
        "splits": SPLITS,
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": round(fmean(losses[-100:]), 4),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "sha256": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }
    (folder / "recipe.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return folder


def _optimizers(model: LlamaForCausalLM, recipe: Recipe) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    muon = torch.optim.Muon(
        matrices, lr=recipe.matrix_rate, weight_decay=recipe.weight_decay, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, torch.optim.AdamW(others, lr=recipe.other_rate, weight_decay=0.0)]


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where model, tokenizer and recipe.json go")
    parser.add_argument("--large", action="store_true", help="the 10 M parameter model of the large world")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of torch on CPU; part of what makes bytes repeat")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    print(train_base(options.folder, LARGE_RECIPE if options.large else Recipe(), options.device))


if __name__ == "__main__":
    main()
