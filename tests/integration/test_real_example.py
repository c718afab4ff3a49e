"""The real example on data and a model of a few kilobytes: the slice, the GGUF that becomes its base, both runs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from influray import pipeline, real_example
from influray.cli.app import app
from influray.protocols import ConfigError
from influray.report.compare import compare
from influray.store.run_directory import RunDirectory
from tests.tiny import chat, tiny_llama, write_jsonl, write_tiny_model

SHORT, LONG = "2+2?", "x" * 2000


def conversations(name: str, rows: int) -> list[dict]:
    return [chat(f"{name}-{i}", name, f"{name} {i}: {SHORT if i % 3 else LONG}", f"{4 + i}") for i in range(rows)]


def data_folder(folder: Path, sources: tuple[str, ...], tasks: tuple[str, ...], rows: int = 40) -> Path:
    (folder / "pool").mkdir(parents=True)
    for name in sources:
        lines = "".join(json.dumps(row) + "\n" for row in conversations(name, rows))
        (folder / "pool" / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    for task in tasks:
        for split in ("few_shot", "test"):
            write_jsonl(folder / "targets" / task / f"{split}.jsonl", conversations(f"{task}-{split}", 30))
    return folder


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def prepared(folder: Path, data: Path) -> tuple[Path, Path]:
    RunDirectory(folder).claim()
    if not (folder / "world" / "base").exists():
        write_tiny_model(folder / "world" / "base")
    return real_example.prepare(folder, data)


def test_the_slice_is_short_rows_of_the_sources_it_knows_in_their_order_and_the_same_bytes_twice(tmp_path):
    data = data_folder(tmp_path / "data", ("another", "gsm8k_train", "p3"), ("gsm8k", "mmlu", "other"), rows=300)
    configs = prepared(tmp_path / "run", data)
    world = tmp_path / "run" / "world"
    pool = read(world / "pool.jsonl")
    assert [row["source"] for row in pool] == ["gsm8k_train"] * 130 + ["p3"] * 130
    numbers = [int(row["id"].split("-")[1]) for row in pool[:130]]
    assert numbers == sorted(numbers)
    assert numbers[:20] != list(range(20)), "drawn from the whole file"
    assert not any(LONG in row["messages"][0]["content"] for row in pool)
    assert sorted(path.name for path in (world / "targets").iterdir()) == ["gsm8k.jsonl", "mmlu.jsonl"]
    assert len(read(world / "targets" / "gsm8k.jsonl")) == len(read(world / "test" / "mmlu.jsonl")) == 20
    before = {path: path.read_bytes() for path in world.rglob("*") if path.is_file()}
    assert prepared(tmp_path / "run", data) == configs
    assert {path: path.read_bytes() for path in world.rglob("*") if path.is_file()} == before


def test_of_a_folder_with_other_names_the_first_sources_and_tasks_are_taken(tmp_path):
    names = tuple(f"source{i:02}" for i in range(12))
    prepared(tmp_path / "run", data_folder(tmp_path / "data", names, ("a", "b", "c", "d", "e")))
    world = tmp_path / "run" / "world"
    assert {row["source"] for row in read(world / "pool.jsonl")} == set(names[:10])
    assert sorted(path.stem for path in (world / "test").iterdir()) == ["a", "b", "c", "d"]


def test_what_is_missing_is_named(tmp_path, monkeypatch):
    answer = CliRunner().invoke(app, ["demo", "--data", str(tmp_path)])
    assert isinstance(answer.exception, ConfigError)
    assert "is for --size real" in str(answer.exception)
    monkeypatch.delenv("INFLURAY_DATA", raising=False)
    with pytest.raises(ConfigError, match="--data: .*INFLURAY_DATA"):
        real_example.prepare(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"has no pool/\*\.jsonl\[\.gz\]"):
        real_example.prepare(tmp_path / "run", tmp_path / "empty")
    data = data_folder(tmp_path / "data", ("p3",), ())
    with pytest.raises(ConfigError, match=r"has no targets/\*/test\.jsonl"):
        real_example.prepare(tmp_path / "run", data)
    write_jsonl(data / "targets" / "t" / "test.jsonl", [chat("a", "t", LONG, "b")])
    write_jsonl(data / "targets" / "t" / "few_shot.jsonl", [chat("a", "t", "a", "b")])
    with pytest.raises(ConfigError, match=r"no row of '.*test\.jsonl' is as short as 800 characters"):
        real_example.prepare(tmp_path / "run", data)


@pytest.mark.ray
@pytest.mark.endurance
def test_both_runs_of_the_example_end_in_one_comparison(tmp_path, ray_cluster):
    data = data_folder(tmp_path / "data", ("gsm8k_train", "p3"), ("gsm8k", "mmlu"))
    smaller = {
        "features.projector.dimension": 64,
        "tune.seeds": [0],
        "tune.tokens": 300,
        "data.max_tokens": 64,
        "tune.warmup_ratio": 0.0,
    }
    budget = {"tokens": 200}
    runs = []
    for path in prepared(tmp_path / "run", data):
        names = ("bids",) if path.stem == "config" else ("rds-plus",)
        methods = {"rds-plus": "rr_tasks"}
        changes = {
            "selectors": [{"name": name, "method": methods.get(name, name), "budget": budget} for name in names],
            "tune.selections": [*names, "full"] if path.stem == "config" else list(names),
        }
        runs.append(pipeline.run(path, {**smaller, **changes}))
    assert [run.directory.path.name for run in runs] == ["run", "run-rds"]
    for name in ("bids", "full"):
        manifest = json.loads((runs[0].directory.tune(name, 0) / "manifest.json").read_text())
        assert manifest["steps"] >= 1
        assert (manifest["tokens"] > 300) == (name == "full")
    found = compare([run.directory.path for run in runs])
    labels = " ".join(entry.label for entry in found.entries)
    assert all(name in labels for name in ("bids", "full", "rds-plus"))


def small_gguf(path: Path) -> dict[str, torch.Tensor]:
    """Write a Llama of two layers as GGUF in float32, with a byte-level tokenizer; return its weights by GGUF's names."""
    model = tiny_llama(vocab=260)
    writer = gguf.GGUFWriter(path, "llama")
    config = model.config
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(512)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_vocab_size(260)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), "12"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["1 2"])  # what digits of their own undo
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    weights = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight":
            continue  # tied
        weights[names.get_name(name, (".weight",))] = value
    for name, value in weights.items():
        writer.add_tensor(name, value.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return weights


def test_the_base_made_of_a_gguf_has_its_weights_and_splits_digits(tmp_path):
    (tmp_path / "package").mkdir()
    file = tmp_path / "package" / "tiny.gguf"
    small_gguf(file)
    real_example.dequantize(file, tmp_path / "base")
    real_example.dequantize(file, tmp_path / "again")
    for path in (tmp_path / "base").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    ids = torch.arange(20)[None]
    torch.testing.assert_close(made(ids).logits, read(ids).logits, rtol=0, atol=0)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    assert tokenizer.tokenize("a12b") == ["a", "1", "2", "b"]
    assert AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).tokenize("a12b") != ["a", "1", "2", "b"]
    assert (
        tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "<|im_start|>a<|im_end|>"
    )
