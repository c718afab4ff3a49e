"""The DATE-LM benchmark (arXiv 2507.09424): scores by influray's scorers, in the form that its evaluation reads.

    python jobs/datelm.py configs/toxicity-bias.yaml --out OUT --scorers cosine,dot,datainf,representation,bm25

The YAML file is the benchmark's own (`task`, `subset`, `base_model_path`, `checkpoint`). Its data sets and adapters are
folders, or names on the Hugging Face hub:

    data        SUBSET/train.jsonl and SUBSET/ref.jsonl, a prompt and a response a line; beside them `type` (toxicity),
                `counterfactual_entity` and `true_entity` (Counterfact), or `facts` (ftrace)
    checkpoint  one LoRA adapter as peft saves it, without an optimizer's state: features are plain gradients (sgd)

Written, for each scorer, is OUT/NAME.json in the order of train.jsonl:

    Toxicity/Bias        one number a training example, the mean over the references: [N]
    Counterfact, ftrace  one list a reference, of one number a training example: [R][N]; nothing is aggregated
    Finetune             OUT/SUBSET_NAME.npy, float32 [N], the mean over the references; the order is that of the
                         benchmark's shuffled training set. Data are JSON lines of `messages`, in `train_data_path` and
                         `ref_data_path` of the YAML file, as the benchmark publishes no file of references

OUT/results.json holds what needs no training: AUPRC (area by trapezoids, as the benchmark has it, and the average
precision), or Recall@50 and MRR, in which equal scores count by expectation. A training example that influray cannot
use (nothing of it is trained) gets the lowest score of each column; `without_score` counts them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

import influray
from influray.data.catalogue import Catalogue
from influray.evaluation.retrieval import measure_retrieval
from influray.model.adapter_files import read_adapter
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.store.artifact import fingerprint
from influray.store.attribution import Attribution
from influray.validation.scorers import KNOWN, columns_of

TOXICITY, FINETUNE = "Toxicity/Bias", "Finetune"
HUB = {
    TOXICITY: "DataAttributionEval/Toxicity-Bias-Filtering",
    "Counterfact": "DataAttributionEval/Counterfact",
    "ftrace": "DataAttributionEval/ftrace",
}
NEEDED = {
    TOXICITY: {"train": ("prompt", "response", "type"), "ref": ("prompt", "response")},
    "Counterfact": dict.fromkeys(("train", "ref"), ("prompt", "response", "counterfactual_entity", "true_entity")),
    "ftrace": dict.fromkeys(("train", "ref"), ("prompt", "response", "facts")),
    FINETUNE: dict.fromkeys(("train", "ref"), ("messages",)),
}
KEYS = ("task", "subset", "base_model_path", "checkpoint")
SCORERS = tuple(name for name in KNOWN if name not in ("vog", "random"))
# How the adapters' training data were written; {bos} where the tokenizer puts its token before a text.
TEMPLATE = (
    "{bos}{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
Rows = list[dict[str, Any]]


def read_settings(path: Path) -> dict[str, Any]:
    """Return the benchmark's YAML file. Raises ConfigError where keys are missing or the task is none of its."""
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: holds no mapping; wanted are the keys {', '.join(KEYS)}")
    wanted = (*KEYS, "train_data_path", "ref_data_path") if settings.get("task") == FINETUNE else KEYS
    for key in wanted:
        if not isinstance(settings.get(key), str):
            raise ConfigError(f"{path}: {key} is {settings.get(key)!r}, and a text is wanted")
    if settings["task"] not in NEEDED:
        raise ConfigError(f"{path}: task {settings['task']!r} is none of {', '.join(NEEDED)}")
    return settings


def read_rows(path: Path, task: str, split: str) -> Rows:
    """Return the rows of a published file in its order. Raises DataError naming file and line."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; the benchmark's data lie in SUBSET/train.jsonl and SUBSET/ref.jsonl")
    rows = []
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error}") from None
            for key in NEEDED[task][split]:
                kind = list if key in ("facts", "messages") else str
                if not isinstance(row, dict) or not isinstance(row.get(key), kind) or (kind is list and not row[key]):
                    raise DataError(f"{path}:{number}: {key} is missing or no {kind.__name__}, as task {task} has it")
            rows.append(row)
    if not rows:
        raise DataError(f"{path} is empty")
    return rows


def finetune_order(rows: int, subset: int = 200_000, held_out: float = 0.1, seed: int = 42) -> np.ndarray:
    """Return the lines of the training file in the order of the benchmark's training set, int64 [N].

    It shuffles, takes subset / (1 - held_out), and holds a share out, each by `datasets` with one seed.
    """
    from datasets import Dataset

    lines = Dataset.from_dict({"line": np.arange(rows)}).shuffle(seed=seed)
    lines = lines.select(range(min(int(subset / (1 - held_out)), rows)))
    return np.array(lines.train_test_split(test_size=held_out, seed=seed)["train"]["line"], np.int64)


def local(name: str, repo_type: str, patterns: list[str] | None = None) -> Path:
    """Return the folder, or a copy of what the hub has under this name."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, repo_type=repo_type, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{name}: no such folder, and not to be had from the hub: {error}") from None


def load(settings: Mapping[str, Any], data: str | None) -> tuple[Rows, Rows]:
    """Return the rows of training and reference examples, those of Finetune in the benchmark's order."""
    task, subset = settings["task"], settings["subset"]
    if task == FINETUNE:
        train, ref = (read_rows(Path(settings[f"{split}_data_path"]), task, split) for split in ("train", "ref"))
        return [train[line] for line in finetune_order(len(train))], ref
    folder = local(data or HUB[task], "dataset", [f"{subset}/*.jsonl"]) / subset
    train, ref = (read_rows(folder / f"{split}.jsonl", task, split) for split in ("train", "ref"))
    relevant(task, train, ref, folder)
    return train, ref


def relevant(task: str, train: Rows, ref: Rows, folder: Path) -> np.ndarray:
    """Return which training examples should rank high, bool [1, N] (toxicity) or [R, N]. DataError where none."""
    if task == TOXICITY:
        found = np.array([[row["type"] == "Unsafe" for row in train]])
    elif task == "Counterfact":
        pairs = [(row["counterfactual_entity"], row["true_entity"]) for row in train]
        found = np.array([[pair == (r["counterfactual_entity"], r["true_entity"]) for pair in pairs] for r in ref])
    else:
        found = np.array([[r["facts"][0] in row["facts"] for row in train] for r in ref])
    for number in np.flatnonzero(~found.any(1))[:1]:
        raise DataError(
            f"{folder / 'train.jsonl'}: no row of type Unsafe"
            if task == TOXICITY
            else f"{folder / 'ref.jsonl'}:{number + 1}: train.jsonl has no row with its fact"
        )
    return found


def write_world(out: Path, settings: Mapping[str, Any], train: Rows, ref: Rows) -> None:
    """Write what influray reads: pool and targets as messages, stripped as the benchmark does, and the template."""
    from influray.config_model import ModelConfig
    from influray.model.loading import load_tokenizer

    out.mkdir(parents=True, exist_ok=True)
    for split, rows in (("train", train), ("ref", ref)):
        with (out / f"{split}.jsonl").open("w", encoding="utf-8") as file:
            for number, row in enumerate(rows):
                turns = row.get("messages") or [
                    {"role": "user", "content": row["prompt"]},
                    {"role": "assistant", "content": row["response"]},
                ]
                turns = [{"role": turn["role"], "content": turn["content"].strip()} for turn in turns]
                file.write(json.dumps({"id": f"{split}-{number}", "messages": turns}) + "\n")
    tokenizer = load_tokenizer(ModelConfig(base=settings["base_model_path"]))
    starts = tokenizer("a").input_ids[0] == tokenizer.bos_token_id
    (out / "template.jinja").write_text(TEMPLATE.replace("{bos}", "{{ bos_token }}" if starts else ""))


def config_of(name: str, settings: Mapping[str, Any], adapter: Path, out: Path, options: argparse.Namespace) -> dict:
    """Return the config of the run that a scorer's matrix is made in; scorers on the same features share its place."""
    one = KNOWN[name]
    features = {"featurizer": "gradient", "direction": "sgd", **one.features}
    if features["featurizer"] == "gradient":
        features["projector"] = {"name": options.projector, "dimension": options.dimension}
    return {
        "run_dir": str(out / "runs" / f"{features['featurizer']}-{fingerprint(features)[:12]}"),
        "model": {
            "base": settings["base_model_path"],
            "dtype": options.dtype,
            "chat_template": str(out / "template.jinja"),
        },
        "data": {
            "root": str(out.resolve()),
            "pool": "train.jsonl",
            "targets": {"ref": "ref.jsonl"},
            "max_tokens": options.max_tokens,
            "max_bad_fraction": 1.0,
        },
        "warmup": {"checkpoints": [{"adapter": str(adapter), "mean_learning_rate": 1.0}]},
        "features": features,
        "attribution": {"scorer": one.scorer, "options": dict(one.options)},
        "selectors": [{"name": "random", "method": "random", "budget": 1}],
        "resources": {"workers": options.workers},
    }


def scores_of(config: Mapping[str, Any], train: int, ref: int) -> tuple[np.ndarray, int]:
    """Run a config up to its scores; return them as [train, ref], in the order of the files, and how many had none.

    Raises:
        DataError: a reference cannot be read, or no training example can.
        ConfigError, ArtifactMismatch: as `influray.run`.
    """
    directory = influray.run(config, until="score").directory
    matrix, pool, target = Attribution(directory.attribution), *map(Catalogue, map(directory.data, ("pool", "target")))
    places = {identity: row for row, identity in enumerate(target.ids)}
    missing = [number for number in range(ref) if f"ref-{number}" not in places]
    if missing:
        raise DataError(f"reference {missing[0] + 1} cannot be read; {directory.path} tells why, under its data")
    columns = columns_of(matrix, target.groups, np.arange(len(target)))
    score_NT = matrix.gather(matrix.rows)
    found_NR = np.full((train, ref), np.nan, np.float32)
    lines = [int(pool.ids[row].rpartition("-")[2]) for row in matrix.rows]
    found_NR[lines] = score_NT[:, columns[[places[f"ref-{number}"] for number in range(ref)]]]
    lowest_R = np.nanmin(found_NR, axis=0)
    without = np.isnan(found_NR[:, 0])
    found_NR[without] = lowest_R
    return found_NR, int(without.sum())


def trapezoids(score_N: np.ndarray, relevant_N: np.ndarray) -> float:
    """Return the area under precision over recall by trapezoids between different scores, from (0, 1)."""
    order = np.argsort(-score_N, kind="stable")
    last = np.flatnonzero(np.diff(score_N[order], append=np.nan) != 0)  # of each group of equal scores
    hits = np.cumsum(relevant_N[order])[last]
    precision = np.concatenate([[1.0], hits / (last + 1)])
    recall = np.concatenate([[0.0], hits / relevant_N.sum()])
    return float((np.diff(recall) * (precision[1:] + precision[:-1]) / 2).sum())


def metrics(task: str, score_NR: np.ndarray, relevant_RN: np.ndarray) -> dict[str, float]:
    """Return the benchmark's metrics of a task that needs no training."""
    if task == TOXICITY:
        score_N = score_NR.mean(1)
        precision = measure_retrieval(score_N, relevant_RN[0], ()).average_precision
        return {"AUPRC": trapezoids(score_N, relevant_RN[0]), "average_precision": precision}
    found = [measure_retrieval(score_N, ok_N, (50,)) for score_N, ok_N in zip(score_NR.T, relevant_RN, strict=True)]
    recall, rank = np.mean([one.recall[0] for one in found]), np.mean([one.reciprocal_rank for one in found])
    return {"Recall@50": float(recall), "MRR": float(rank)}


def attribute(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Write the scores of every scorer and results.json; return the metrics by scorer. Raises as `influray.run`."""
    unknown = [name for name in options.scorers if name not in SCORERS]
    if unknown:
        raise ConfigError(f"--scorers: {unknown[0]!r} is none of {', '.join(SCORERS)}")
    settings, out = read_settings(options.config), options.out
    adapter = read_adapter(local(settings["checkpoint"], "model"), f"{options.config}: checkpoint").folder
    train, ref = load(settings, options.data)
    write_world(out, settings, train, ref)
    results = {}
    for name in options.scorers:
        config = config_of(name, settings, adapter.resolve(), out, options)
        score_NR, without = scores_of(config, len(train), len(ref))
        results[name] = {"without_score": without}
        if settings["task"] == FINETUNE:
            np.save(out / f"{settings['subset']}_{name}.npy", score_NR.mean(1).astype(np.float32))
            continue
        lists = score_NR.mean(1) if settings["task"] == TOXICITY else score_NR.T
        (out / f"{name}.json").write_text(json.dumps(lists.tolist()))
        results[name] |= metrics(settings["task"], score_NR, relevant(settings["task"], train, ref, out))
        print(name, json.dumps(results[name]), flush=True)
    (out / "results.json").write_text(json.dumps(results, indent=1))
    return results


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, help="a YAML file of the benchmark")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", help="a folder of SUBSET/{train,ref}.jsonl in place of the hub's data set")
    parser.add_argument("--scorers", type=lambda text: text.split(","), default=["cosine", "dot", "bm25"])
    parser.add_argument("--projector", default="rademacher")
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--max-tokens", type=int, default=1024, help="as the benchmark cuts its examples")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--workers", default="auto", type=lambda text: text if text == "auto" else int(text))
    return parser.parse_args(given)


if __name__ == "__main__":
    try:
        attribute(arguments())
    except (ConfigError, DataError, ArtifactMismatch) as error:
        print(error, file=sys.stderr)
        sys.exit(2)
