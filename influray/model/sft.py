"""The training loop itself: transformers' Trainer with the batches, the objective and the bookkeeping of finetune.

Trainer contributes devices, DDP, mixed precision, gradient accumulation and clipping. Its own batching, loss scaling,
logging and checkpoints are not used: they weigh examples by tokens, follow torch's random numbers, and write
optimizer states without names.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from influray.config_model import FinetuneConfig
from influray.model.batch import Batch, make_batch
from influray.model.checkpoints import Checkpoint, save_checkpoint
from influray.model.example_losses import mean_losses, trained_logits
from influray.model.history import History, Report
from influray.model.optimizer_state import AdamMoments
from influray.model.step_plan import StepPlan, barrier, process_group
from influray.protocols import DataError, TokenizedExample

# The first fields of Batch, as collate names them: under "input_ids" Trainer counts the tokens.
BATCH = ("input_ids", "attention_mask", "position", "label", "loss_tokens")


def run_training_loop(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    config: FinetuneConfig,
    plan: StepPlan,
    factors: Sequence[float],
    last: Checkpoint | None,
    history: History,
    report: Report,
) -> None:
    """Train `model` from the end of `last`, or from its start, to the end of `factors`, one per optimizer step."""
    epochs_done, steps_done = (last.state["epoch"], last.state["step"]) if last is not None else (0, 0)
    if last is not None:
        _load_adapter(model, last)
    if steps_done == len(factors):
        model.eval()
        return
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        trained.values(),
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        eps=config.adam_epsilon,
        weight_decay=config.weight_decay,
    )
    if last is not None:
        _load_moments(optimizer, trained, last.moments())
    # A function of the step alone: what was resumed is at the rate it would have had.
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: factors[min(steps_done + step, len(factors) - 1)]
    )
    batches = EpochBatches(plan, epochs_done, process_group()[0])
    course = Course(optimizer, trained, batches, config, history, len(factors), report.facts if report.to else {})
    model_config: Any = model.config
    use_cache = model_config.use_cache
    trainer = SftTrainer(
        model=model,
        args=_arguments(model, config, plan, len(factors) - steps_done, history, report),
        train_dataset=ExampleDataset(examples),
        data_collator=collate,
        optimizers=(optimizer, scheduler),
        callbacks=[course],
    )
    trainer.remove_callback(PrinterCallback)  # it prints every log to stdout
    trainer.batches, trainer.course = batches, course
    course.trainer = trainer
    try:
        trainer.train()
    finally:
        if "wandb" in report.to:
            importlib.import_module(
                "wandb"
            ).finish()  # else the next training of this process would go on in the same run
        model_config.use_cache = use_cache  # Trainer turns it off for good
        model.eval()
    barrier()  # no rank goes on before rank 0 has written


class ExampleDataset(Dataset):
    """Examples by (position, weight)."""

    def __init__(self, examples: Sequence[TokenizedExample]) -> None:
        self.examples = examples

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, item: tuple[int, float]) -> tuple[TokenizedExample, float]:
        position, weight = item
        return self.examples[position], weight


class EpochBatches(Sampler):
    """The forward passes of one rank in the current epoch; `epoch` counts from 0 over the whole training."""

    def __init__(self, plan: StepPlan, epoch: int, rank: int) -> None:
        self.plan = plan
        self.epoch = epoch
        self.rank = rank
        self._length = sum(1 for _ in plan.passes(epoch, rank))  # the same in every epoch

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[list[tuple[int, float]]]:
        return self.plan.passes(self.epoch, self.rank)


def collate(items: Sequence[tuple[TokenizedExample, float]]) -> dict[str, Tensor]:
    """Return the tensors of one forward pass: those of Batch, and row and weight of each example."""
    examples = [example for example, _ in items]
    batch = make_batch(examples, "cpu")
    return {
        **{name: getattr(batch, field.name) for name, field in zip(BATCH, fields(Batch), strict=False)},
        "weight": torch.tensor([weight for _, weight in items], dtype=torch.float64),
        "row": torch.tensor([example.row for example in examples]),
    }


class SftTrainer(Trainer):
    """Trainer whose batches come from a StepPlan and whose loss is the weighted sum of example losses."""

    batches: EpochBatches
    course: Course

    def get_train_dataloader(self) -> DataLoader:
        # Not prepared by accelerate: the plan deals out to the ranks itself, and evenly in the sense it means.
        # The generator keeps the loader from drawing on the one that dropout uses.
        return DataLoader(
            self.train_dataset,  # pyright: ignore[reportArgumentType]
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            generator=torch.Generator().manual_seed(0),
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Add the gradient of one forward pass. `num_items_in_batch` is what would weigh by tokens: not used."""
        model.train()
        tensors = self._prepare_inputs(inputs)
        ids, mask, position, label, loss_tokens = (tensors[name] for name in BATCH)
        batch = Batch(ids, mask, position, label, loss_tokens)
        with self.compute_loss_context_manager():
            loss_B = mean_losses(trained_logits(model, batch), batch)
        loss = (loss_B * tensors["weight"].to(loss_B)).sum()
        # DDP averages over ranks what is here a sum over them.
        self.accelerator.backward(loss * self.accelerator.num_processes)
        self.course.add(tensors["row"], loss_B.detach(), tensors["weight"])
        return loss.detach() * self.accelerator.num_processes  # what Trainer logs, as a mean over the ranks


@dataclass(eq=False)
class Course(TrainerCallback):
    """Seeds each epoch, and records each step's loss and learning rate and each epoch's checkpoint."""

    optimizer: torch.optim.Optimizer
    trained: dict[str, nn.Parameter]
    batches: EpochBatches
    config: FinetuneConfig
    history: History
    total: int
    facts: Mapping[str, float]  # told once, where the steps are reported

    def __post_init__(self) -> None:
        self.trainer: SftTrainer  # set when there is one
        self._next_epoch = self.batches.epoch
        self._passes: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, row_B: Tensor, loss_B: Tensor, weight_B: Tensor) -> None:
        self._passes.append((row_B, loss_B, weight_B))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.facts:
            self.trainer.log(dict(self.facts))

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.epoch = self._next_epoch
        # Not the state of a generator but its seed: what resumes needs no more than the number of the epoch.
        seed = np.random.SeedSequence((self.config.seed, self._next_epoch, self.batches.rank))
        torch.manual_seed(int(seed.generate_state(1, np.uint64)[0] >> 1))

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Record the step before it is made; a loss that is not finite stops here, before it spoils the weights."""
        row_B, loss_B, weight_B = (torch.cat(parts) for parts in zip(*self._passes, strict=True))
        self._passes.clear()
        bad_B = ~torch.isfinite(loss_B) & (weight_B > 0)
        sums = torch.stack([(loss_B.double() * weight_B).sum(), bad_B.sum().double()])
        loss, bad = self.trainer.accelerator.reduce(sums, "sum").tolist()  # pyright: ignore[reportAttributeAccessIssue]
        if bad or not math.isfinite(loss):
            raise self._not_finite(row_B[bad_B].tolist())
        self.history.end_step(loss, float(self.optimizer.param_groups[0]["lr"]))

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        first_step = self._next_epoch * self.batches.plan.steps_per_epoch
        self._next_epoch += 1

        def save(folder: Any, **facts: Any) -> Checkpoint:
            model = self.trainer.accelerator.unwrap_model(self.trainer.model)
            return save_checkpoint(folder, model, self._moments(), rows=self.batches.plan.examples, **facts)

        self.history.end_epoch(self._next_epoch, first_step, len(self.history.losses) == self.total, save)

    def _moments(self) -> AdamMoments:
        states = {name: self.optimizer.state[p] for name, p in self.trained.items()}
        return AdamMoments(
            exp_avg={name: state["exp_avg"] for name, state in states.items()},
            exp_avg_sq={name: state["exp_avg_sq"] for name, state in states.items()},
            beta1=self.config.adam_beta1,
            beta2=self.config.adam_beta2,
            epsilon=self.config.adam_epsilon,
            step=len(self.history.losses),
        )

    def _not_finite(self, rows: list[int]) -> DataError:
        ranks = process_group()[1]
        if ranks > 1:
            # Every rank comes here, since they share the sum, and names the same rows.
            everyone: list[Any] = [None] * ranks
            dist.all_gather_object(everyone, rows)
            rows = [row for part in everyone for row in part]
        step = len(self.history.losses) + 1
        return DataError(
            f"the loss is not finite at optimizer step {step} of {self.total} (rows {sorted(set(rows))[:8]}); "
            "lower learning_rate, or look at these rows with `influray inspect`"
        )


def _arguments(
    model: nn.Module, config: FinetuneConfig, plan: StepPlan, steps: int, history: History, report: Report
) -> TrainingArguments:
    device = next(model.parameters()).device
    base = {p.dtype for p in model.parameters() if not p.requires_grad}
    arguments = TrainingArguments(
        output_dir=str(history.folder),
        max_steps=steps,
        per_device_train_batch_size=config.device_batch_size,
        gradient_accumulation_steps=plan.accumulation,
        max_grad_norm=config.max_grad_norm,
        seed=config.seed % 2**32,
        use_cpu=device.type == "cpu",
        bf16=device.type == "cuda" and torch.bfloat16 in base,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        average_tokens_across_devices=False,
        logging_nan_inf_filter=False,
        logging_strategy="steps" if report.to else "no",
        logging_steps=1,
        save_strategy="no",
        report_to=list(report.to) or "none",
        run_name=report.name or None,
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        # A process that sees several GPUs without being a rank would be given nn.DataParallel, which cannot split
        # the flat list of trained positions. Trainer itself sets this for a model spread by device_map.
        arguments._n_gpu = 1
    return arguments


def _load_adapter(model: nn.Module, checkpoint: Checkpoint) -> None:
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(checkpoint.adapter / "adapter_model.safetensors"))


def _load_moments(optimizer: torch.optim.Optimizer, trained: dict[str, nn.Parameter], moments: AdamMoments) -> None:
    for name, parameter in trained.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(moments.step)),
            "exp_avg": moments.exp_avg[name].to(parameter),
            "exp_avg_sq": moments.exp_avg_sq[name].to(parameter),
        }
