"""dattri-llm's scores of a run's pool rows, for jobs/benchmark_fidelity.py: run by an environment that has dattri-llm.

    python dattri_scores.py WORLD OUT

Reads WORLD/world.json and WORLD/tokens.npz, writes OUT/NAME.npy, float32 [N, T], and OUT/seconds.json, CPU seconds.
Adapters, moments, weights of the checkpoints and tokens are influray's own, so that methods alone are compared.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from dattri_llm import AttributionTask, EKFACAttributor, LESSAttributor, TracInAttributor, hash_sample
from dattri_llm.attribution import AttributionArguments
from dattri_llm.gradient.hooks import REGISTER_ALL, HookManagerConfig
from peft import PeftModel, load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

BATCH = 10


def main(world: Path, out: Path) -> None:
    facts = json.loads((world / "world.json").read_text())
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    base = AutoModelForCausalLM.from_pretrained(facts["base"], use_safetensors=True, **how)
    adapters = [one["adapter"] for one in facts["checkpoints"]]
    model = PeftModel.from_pretrained(base, adapters[-1], is_trainable=True)
    model.eval()
    pool, target = samples(world, "pool"), samples(world, "target")
    weights = [one["weight"] for one in facts["checkpoints"]]

    def load(model, checkpoint):
        set_peft_model_state_dict(model, load_peft_weights(checkpoint))
        return model

    def attribute(kind, checkpoints, options=None, **how):
        task = AttributionTask(loss, model, checkpoints=checkpoints, checkpoints_load_func=load)
        with tempfile.TemporaryDirectory() as folder:
            arguments = AttributionArguments(
                output_dir=folder, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH
            )
            hooks = HookManagerConfig(linear_io=REGISTER_ALL)
            found = kind(arguments, task=task, **(options or {})).attribute(pool, target, hook_config=hooks, **how)
        return in_order(found, pool, target)

    optimizers = [adam(model, one["moments"]) for one in facts["checkpoints"]]
    methods = {
        "less": lambda: attribute(
            LESSAttributor, adapters, {"optimizers": optimizers, "checkpoint_weights": weights}
        ).sum(0),
        "gradient_cosine": lambda: np.tensordot(
            weights, attribute(TracInAttributor, adapters, normalized_grad=True), axes=1
        ),
        "tracin": lambda: np.tensordot(weights, attribute(TracInAttributor, adapters), axes=1),
        "ekfac": lambda: attribute(EKFACAttributor, adapters[-1:], damping=0.1, relative_damping=True).sum(0),
    }
    seconds = {}
    for name, method in methods.items():
        started = time.process_time()
        np.save(out / f"{name}.npy", method().astype(np.float32))
        seconds[name] = time.process_time() - started
        print(f"dattri-llm {name}: {seconds[name]:.0f} CPU s", flush=True)
    (out / "seconds.json").write_text(json.dumps(seconds))


def samples(world: Path, split: str) -> list[dict[str, torch.Tensor]]:
    """Return the rows of a split, padded to one length, as its collation needs."""
    tokens = np.load(world / "tokens.npz", allow_pickle=False)
    length = tokens[f"{split}_length"]
    longest, stop = int(length.max()), np.cumsum(length)
    found = []
    for number, (last, size) in enumerate(zip(stop, length, strict=True)):
        here = slice(last - size, last)
        ids, labels = np.zeros(longest, np.int64), np.full(longest, -100)
        ids[:size] = tokens[f"{split}_ids"][here]
        labels[:size] = np.where(tokens[f"{split}_mask"][here], ids[:size], -100)
        mask = (np.arange(longest) < size).astype(np.int64)
        # The number: rows of equal content would have one hash, and share a line of the scores.
        row = {"input_ids": ids, "labels": labels, "attention_mask": mask, "number": np.array(number)}
        found.append({name: torch.from_numpy(np.asarray(value)) for name, value in row.items()})
    return found


def loss(model, batch) -> torch.Tensor:
    """Return the sum over rows of each row's mean loss: a row's gradient is then its own, whatever is beside it."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    every = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=-100, reduction="none")
    return (every.sum(1) / (labels != -100).sum(1)).sum()


def adam(model, moments: str) -> torch.optim.AdamW:
    """Return an optimizer with the moments of a checkpoint, at the step where they were saved."""
    read = load_file(moments)
    step = json.loads((Path(moments).parent / "state.json").read_text())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(), lr=1e-3, betas=(step["beta1"], step["beta2"]), eps=step["epsilon"], weight_decay=0.0
    )
    for name, parameter in trained.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(step["step"])),
            "exp_avg": read[f"exp_avg/{name}"],
            "exp_avg_sq": read[f"exp_avg_sq/{name}"],
        }
    return optimizer


def in_order(found, pool, target) -> np.ndarray:
    """Return the scores by checkpoint, row and target, [K, N, T]."""
    row = {hash_sample(one): n for n, one in enumerate(pool)}
    column = {hash_sample(one): t for t, one in enumerate(target)}
    steps = sorted(set(found.row_steps))
    scores = np.full((len(steps), len(pool), len(target)), np.nan, np.float32)
    columns = [column[one] for one in found.test_ids]
    for line, train_id, step in zip(found.scores.numpy(), found.row_train_ids, found.row_steps, strict=True):
        scores[steps.index(step), row[train_id], columns] = line
    assert np.isfinite(scores).all()
    return scores


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
