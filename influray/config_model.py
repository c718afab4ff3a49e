"""The sections of a config that say what is trained: the base with its adapter, and the warmup."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from influray.config_base import Fraction, Positive, Section, Seed


class LoraConfig(Section):
    """The adapter whose gradients are the features."""

    r: Positive = 128  # rank
    alpha: float = Field(default=512, gt=0)  # scaling = alpha / r
    dropout: float = Field(default=0.1, ge=0, lt=1)  # in training only; gradient features never use dropout
    targets: tuple[str, ...] = Field(
        default=("q_proj", "k_proj", "v_proj", "o_proj"), min_length=1
    )  # module name endings


class ModelConfig(Section):
    """The base model."""

    base: str  # a folder or a hub id of a transformers causal LM
    revision: str = "main"  # hub revision; not used for a folder
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"  # of the frozen base weights
    quantization: Literal["none", "nf4", "fp4"] = "none"  # of the frozen base: 4 bits through bitsandbytes
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    trust_remote_code: bool = False  # runs code of the model's author
    chat_template: str | Literal["auto"] = "auto"  # auto = the tokenizer's own, else a plain Tulu-style one; or a file
    lora: LoraConfig = LoraConfig()


class FinetuneConfig(Section):
    """Hyper-parameters of one supervised fine-tuning, shared by warmup and tune."""

    epochs: Positive = 4
    steps: Positive | None = None  # optimizer steps in place of epochs, to compare at equal steps
    learning_rate: float = Field(default=2e-5, gt=0)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = Field(default=0.03, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    batch_size: Positive = 128  # examples per optimizer step over all workers
    device_batch_size: Positive = 4  # examples per forward pass on one worker
    adam_beta1: float = Field(default=0.9, ge=0, lt=1)
    adam_beta2: float = Field(default=0.999, ge=0, lt=1)
    adam_epsilon: float = Field(default=1e-8, gt=0)
    max_grad_norm: float = Field(default=1.0, ge=0)  # 0 = no clipping
    seed: Seed = 0


class ImportedCheckpoint(Section):
    """One of the user's own warmup checkpoints."""

    adapter: str  # folder of a peft adapter
    optimizer: str | None = None  # optimizer.pt / optimizer.bin / safetensors; None = directions that need no moments
    mean_learning_rate: float = Field(gt=0)  # the weight of this checkpoint before normalisation


Reporter = Literal["tensorboard", "wandb", "mlflow"]


class WarmupConfig(FinetuneConfig):
    """How the warmup checkpoints come to be (LESS section 3; BIDS appendix A)."""

    # targets = the untouched base and an adapter for each task, trained on its targets, in place of one for each epoch
    # on the pool: what losses are compared under (CoLoR-Filter), and no model to take a target's gradient at
    train_on: Literal["pool", "targets"] = "pool"
    pooled: bool = False  # on targets: one adapter of all tasks together in place of one for each
    fraction: Fraction = 1.0  # of the pool, or of each task's targets, drawn by `seed` (BIDS 1.0, LESS 0.05)
    checkpoints: tuple[ImportedCheckpoint, ...] = ()  # the user's own in place of training
    report_to: tuple[
        Reporter, ...
    ] = ()  # where loss, rate and gradient norm of each step go, by transformers' own ways

    def tuned_on(self, tasks: Iterable[str]) -> tuple[tuple[str, ...], ...]:
        """Return the tasks that each checkpoint of a warmup on targets is trained on, none for the base, its first.

        `tasks` may repeat. Of a warmup on the pool it is ().
        """
        each = tuple(dict.fromkeys(tasks))
        if self.train_on == "pool":
            return ()
        return ((), each) if self.pooled else ((), *((task,) for task in each))

    @model_validator(mode="after")
    def _one_kind(self) -> WarmupConfig:
        if self.pooled and self.train_on == "pool":
            raise ValueError("pooled: true joins the adapters of the tasks, and there are none; set train_on: targets")
        if self.checkpoints and self.train_on == "targets":
            raise ValueError("train_on: targets trains adapters and checkpoints are trained; leave one of them out")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Written only where they say something: what was made before there were such keys keeps its fingerprint.
        written = handler(self)
        if self.train_on == "pool":
            written.pop("train_on", None)
            written.pop("pooled", None)
        return written
