"""Make a small tokenizer and base model from a pool: python jobs/train_local_base.py FOLDER --root DATA --pool pool

What configs/real_pool.yaml starts from: a byte-level BPE of 4,096 and a Llama of about a million parameters, trained
for a few hundred steps, about ten minutes on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from influray.data.files import resolve_files
from influray.data.readers import read_rows
from influray.data.records import BadRow

logger = logging.getLogger(__name__)
PAD, BOS, EOS = "<pad>", "<s>", "</s>"


@dataclass(frozen=True, slots=True)
class LocalRecipe:
    """All that decides the model besides the pool and the versions of torch, tokenizers and transformers."""

    seed: int = 0
    vocab_size: int = 4096
    hidden_size: int = 128
    intermediate_size: int = 256
    layers: int = 4
    heads: int = 4
    context: int = 512  # tokens; longer texts are cut
    steps: int = 400
    batch_tokens: int = 8192  # padded, a step
    learning_rate: float = 3e-3  # peak of a cosine with 5 % warmup


def pool_texts(entries: Sequence[str], root: str | Path) -> Iterator[str]:
    """Yield every usable record of a pool as plain text, in file order; unusable rows are passed over."""
    for file in resolve_files(entries, root, "pool"):
        for _, raw in read_rows(file, max_line_bytes=2**24, max_file_bytes=2**40):
            if isinstance(raw, BadRow):
                continue
            try:
                record = file.reading.parse(raw)
            except BadRow:
                continue
            yield "\n".join(f"<|{turn.role}|>\n{turn.text}" for turn in record.turns)


def fit_tokenizer(texts: Iterator[str], recipe: LocalRecipe) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer fitted to the texts; it has no chat template of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS)


def train_local_base(entries: Sequence[str], root: str | Path, folder: str | Path, recipe: LocalRecipe) -> Path:
    """Fit the tokenizer, train the model on next-token loss, write both and recipe.json to `folder`; return it."""
    folder = Path(folder)
    tokenizer: Any = fit_tokenizer(pool_texts(entries, root), recipe)
    ids = [
        np.array([tokenizer.bos_token_id, *row[: recipe.context - 2], tokenizer.eos_token_id], np.int64)
        for chunk in _chunks(pool_texts(entries, root), 1024)
        for row in tokenizer(chunk)["input_ids"]
    ]
    torch.manual_seed(recipe.seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.hidden_size,
            intermediate_size=recipe.intermediate_size,
            num_hidden_layers=recipe.layers,
            num_attention_heads=recipe.heads,
            num_key_value_heads=recipe.heads,
            max_position_embeddings=4 * recipe.context,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    loss = _train(model, ids, recipe)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    facts = {
        "recipe": asdict(recipe),
        "texts": len(ids),
        "parameters": sum(p.numel() for p in model.parameters()),
        "final_loss": loss,
        "sha256": digest,
    }
    (folder / "recipe.json").write_text(json.dumps(facts, indent=1) + "\n")
    return folder


def _train(model: LlamaForCausalLM, ids: list[np.ndarray], recipe: LocalRecipe) -> float:
    """Train in place; return the mean loss of the last 50 steps. Padding is on the right, so no mask is needed."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.1)
    rng = np.random.Generator(np.random.PCG64(recipe.seed))
    losses: list[float] = []
    started = time.monotonic()
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * _schedule(step, recipe.steps)
        batch = _draw(ids, recipe.batch_tokens, rng)
        width = max(map(len, batch))
        tokens = torch.zeros(len(batch), width, dtype=torch.int64)
        labels = torch.full_like(tokens, -100)
        for row, text in enumerate(batch):
            tokens[row, : len(text)] = labels[row, : len(text)] = torch.from_numpy(text)
        loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            logger.info(
                "step %d/%d, loss %.3f, %.0f s",
                step + 1,
                recipe.steps,
                np.mean(losses[-50:]),
                time.monotonic() - started,
            )
    model.eval()
    return float(np.mean(losses[-50:]))


def _draw(ids: list[np.ndarray], budget: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Return texts of similar length, near a random one in length order, that fill the budget with little padding."""
    anchor = len(ids[int(rng.integers(len(ids)))])
    count = max(1, budget // anchor)
    pick = rng.integers(len(ids), size=8 * count)
    near = sorted((ids[int(i)] for i in pick), key=lambda text: abs(len(text) - anchor))[:count]
    near.sort(key=len)
    while len(near) > 1 and len(near[-1]) * len(near) > budget:
        near.pop()
    return near


def _schedule(step: int, steps: int) -> float:
    warmup = max(1, steps // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _chunks(texts: Iterator[str], size: int) -> Iterator[list[str]]:
    chunk: list[str] = []
    for text in texts:
        chunk.append(text)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where the model goes")
    parser.add_argument("--root", default=".", help="where relative pool entries start")
    parser.add_argument("--pool", nargs="+", default=["pool"], help="files or folders, as data.pool of a config")
    parser.add_argument("--steps", type=int, default=LocalRecipe().steps)
    parser.add_argument("--seed", type=int, default=LocalRecipe().seed)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)
    recipe = LocalRecipe(seed=arguments.seed, steps=arguments.steps)
    print(train_local_base(arguments.pool, arguments.root, arguments.folder, recipe))
