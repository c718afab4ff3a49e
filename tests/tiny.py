"""A tiny world made in code: byte tokenizer, random Llama, 24 rows. No network, no files that are shipped."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_tokenizer(chat_template: str | None = CHATML, eos: str = "<|im_end|>") -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without merges: every string has exactly one reading."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    fast.chat_template = chat_template
    return fast


def tiny_llama(vocab: int = 261, seed: int = 0, dtype: torch.dtype = torch.float32, **changes) -> LlamaForCausalLM:
    """A random Llama: 2 layers, width 32, grouped-query attention, tied embeddings."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": vocab,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 4,
    }
    return LlamaForCausalLM(LlamaConfig(**{**settings, **changes})).to(dtype).eval()


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Save tokenizer and model as a folder that `model.base` can name."""
    tiny_llama(seed=seed).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def chat(identity: str, source: str, *turns: str) -> dict:
    """A messages record; turns alternate user, assistant."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
    return {"id": identity, "source": source, "messages": messages}


def pool_rows(n: int = 24) -> list[dict]:
    """Rows of three sources: sums, reversals, and dialogues of two turns."""
    rows = []
    for i in range(n):
        if i % 3 == 0:
            rows.append(chat(f"sum-{i}", "sums", f"What is {i}+{i + 1}?", str(2 * i + 1)))
        elif i % 3 == 1:
            word = "abcdefgh"[: 2 + i % 6]
            rows.append(chat(f"rev-{i}", "reversals", f"Reverse {word}.", word[::-1]))
        else:
            rows.append(chat(f"talk-{i}", "talk", "Hi!", "Hello.", f"Say {i}.", f"{i}, of course."))
    return rows


def target_rows(task: str, n: int = 3) -> list[dict]:
    if task == "sums":
        return [
            {**chat(f"t-sum-{i}", "t", f"What is {i}+{i}?", str(2 * i)), "answer": str(2 * i)}
            for i in range(50, 50 + n)
        ]
    return [{**chat(f"t-rev-{i}", "t", f"Reverse x{i}.", f"{i}x"[::-1]), "answer": f"{i}x"[::-1]} for i in range(n)]


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_world(folder: Path) -> Path:
    """Write a model, a pool of two files and two tasks, and return the folder."""
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool" / "a.jsonl", pool_rows(24)[:16])
    write_jsonl(folder / "pool" / "b.jsonl", pool_rows(24)[16:])
    for task in ("sums", "reversals"):
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    return folder


def write_tested_world(folder: Path, rows: int) -> Path:
    """Write a model, a pool of one file, and two tasks with three targets and three test records each."""
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool.jsonl", pool_rows(rows))
    for task in ("sums", "reversals"):
        write_jsonl(folder / f"{task}.jsonl", target_rows(task, 6)[:3])
        write_jsonl(folder / f"{task}-test.jsonl", target_rows(task, 6)[3:])
    return folder
