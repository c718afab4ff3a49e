"""What gradient features cost, beside the training steps that they stand next to.

    python jobs/benchmark_gradients.py llama-5m [--data pool.jsonl.gz] [--against serial,lora_step,full_step,loop]

All run in one process on the same batches, in turns, round by round, and the ratios are medians over the rounds. On a
CPU seconds are CPU seconds of the process, which other work on the machine leaves alone; on a GPU they are seconds
until it is idle.

  ours       rows of features, from tokens to the committed shard, as `influray featurize` makes them
  serial     the same without overlap: a batch is made and begun when the one before it is done
  lora_step  forward and backward of a LoRA fine-tuning step with a frozen base: transformers' own loss, ordinary
             autograd, no optimizer step
  full_step  the same with all parameters trained
  loop       as LESS does it: one example at a time, its gradient flattened and turned into the direction; 16 of them
             are projected at once by a dense +-1 matrix, whose columns are drawn 128 at a time each time, as TRAK's
             BasicProjector does, which LESS falls back to without TRAK's CUDA kernel. Drawn in float32 where LESS
             takes float16, which is slower on a CPU
  padded     with --packing: ours on padded batches, where `ours` then are packed ones of the same token budget

MODEL is a built-in shape with random weights, or a folder that `model.base` could name. --data takes a pool, whose
texts a folder's tokenizer reads; for a shape, four characters count as a token. Without it lengths are log-normal
(median 160, at most 512), and a fifth to four fifths of each example is trained.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gc
import json
import os
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from influray.config import FeaturesConfig
from influray.config_model import LoraConfig, ModelConfig
from influray.data.batches import batch_tokens, plan_batches, plan_packed
from influray.data.files import resolve_files
from influray.data.readers import read_rows
from influray.data.records import BadRow, Record, parse_record
from influray.features.gradient import GradientFeaturizer
from influray.features.preconditioners import make_direction
from influray.features.token_budget import resolve_token_budget
from influray.model.batch import make_batch
from influray.model.checkpoints import AdamMoments
from influray.model.loading import attach_new_adapter, load_base, load_tokenizer
from influray.model.tracked_weights import lora_weights
from influray.protocols import ConfigError, TokenizedExample
from influray.store.artifact import ShardStore
from influray.store.datastore import PartBuilder

# layers, hidden, inner, heads, key-value heads, vocabulary, tied embeddings
SHAPES = {
    "llama-5m": (4, 256, 704, 4, 4, 4096, False),
    "llama-34m": (8, 512, 1408, 8, 8, 8192, False),
    "llama-160m": (12, 768, 2048, 12, 12, 50304, False),
    "llama-1b": (16, 2048, 8192, 32, 8, 128256, True),
    "llama-3-8b": (32, 4096, 14336, 32, 8, 128256, False),
}
AGAINST = ("serial", "lora_step", "full_step", "loop")
OF_STACKS = ("ours", "serial")  # which take packed batches
LOOP_BATCH = 16  # gradients projected at once, as in LESS
STAGES = ("batch", "forward", "head", "backward", "products", "norms", "direction", "projection", "step", "writing")


class Clock:
    """Seconds of the process's CPUs, or of a GPU that has been waited for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __call__(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        return time.process_time()

    @contextlib.contextmanager
    def peak_memory(self, into: list[float]) -> Iterator[None]:
        """Append the highest memory in use meanwhile, in GiB; nothing where the system cannot tell."""
        status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            yield
            into.append(torch.cuda.max_memory_allocated(self.device) / 2**30)
        elif reset.exists():
            gc.collect()
            reset.write_text("5")  # Linux: forget the highest resident size
            yield
            high = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
            into.append(int(high.split()[1]) / 2**20)
        else:
            yield


class Stages:
    """Adds up the seconds and operations between marks: time belongs to the innermost stage that was entered."""

    def __init__(self, clock: Callable[[], float], flops: Callable[[], float]) -> None:
        self._clock, self._flops = clock, flops
        self.seconds: dict[str, float] = defaultdict(float)
        self.flops: dict[str, float] = defaultdict(float)
        self._open: list[str] = ["batch"]
        self._last = clock(), flops()

    def _settle(self) -> None:
        now = self._clock(), self._flops()
        self.seconds[self._open[-1]] += now[0] - self._last[0]
        self.flops[self._open[-1]] += now[1] - self._last[1]
        self._last = now

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Let a callable attribute of an object count as a stage."""
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            self._settle()
            self._open.append(stage)
            try:
                return inner(*args, **kwargs)
            finally:
                self._settle()
                self._open.pop()

        setattr(owner, name, timed)


class Ours:
    """The featurizer, as the workers run it: rows of a shard from batches, then the shard."""

    def __init__(
        self, model: nn.Module, features: FeaturesConfig, moments: AdamMoments, device: torch.device, step: Any
    ) -> None:
        self.featurizer = GradientFeaturizer(model, features, moments, features.direction, device, step)
        self._folder = tempfile.TemporaryDirectory()
        self._store = ShardStore(self._folder.name)
        self._written = 0

    def run(self, batches: list[list[list[TokenizedExample]]]) -> None:
        with PartBuilder(self.featurizer.dimension, "float16") as part:
            for block in self.featurizer.compute_all_packed(batches):
                part.add(block)
            self.write(part)

    def write(self, part: PartBuilder) -> None:
        self._written += 1
        self._store.commit(f"{self._written:064x}", part.table(), {})

    def watch(self, stages: Stages) -> None:
        """Let the stages of a row be counted from now on."""
        engine: Any = self.featurizer._gradients
        stages.wrap(engine, "run", "backward")  # what is left of it when the stages inside have taken theirs
        stages.wrap(engine, "_decode", "forward")
        stages.wrap(engine, "_head_gradient", "head")
        stages.wrap(engine, "_on_gradient", "products")
        for layer in engine.merged:
            stages.wrap(layer, "products", "products")
        step: Any = self.featurizer.inner_step
        if self.featurizer.step == "fused":
            stages.wrap(step, "add", "step")
        else:
            stages.wrap(step, "add_square", "norms")
            stages.wrap(step, "direction", "direction")
            stages.wrap(step.projector, "add_slice", "projection")
        stages.wrap(self, "write", "writing")


class Padded:
    """Ours on padded batches."""

    def __init__(self, ours: Ours) -> None:
        self._ours = ours

    def run(self, batches: list[list[TokenizedExample]]) -> None:
        self._ours.run([[batch] for batch in batches])


class Serial:
    """Our rows again, each batch begun when the one before it is done."""

    def __init__(self, ours: Ours) -> None:
        self._ours = ours

    def run(self, batches: list[list[list[TokenizedExample]]]) -> None:
        with PartBuilder(self._ours.featurizer.dimension, "float16") as part:
            for stacks in batches:
                part.add(self._ours.featurizer.compute_packed(stacks))
            self._ours.write(part)


class Step:
    """A training step's forward and backward: of the adapter alone, or of all parameters."""

    def __init__(self, model: nn.Module, everything: bool, device: torch.device) -> None:
        self._model, self._device = model, device
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(everything or ".lora_" in name)

    def run(self, batches: list[list[TokenizedExample]]) -> None:
        for batch in batches:
            made = make_batch(batch, self._device)
            labels_BS = torch.full_like(made.input_ids_BS, -100)
            labels_BS.view(-1)[made.position_n + 1] = made.label_n
            self._model(input_ids=made.input_ids_BS, attention_mask=made.attention_mask_BS, labels=labels_BS)[
                0
            ].backward()
            for parameter in self._model.parameters():
                parameter.grad = None


class Loop:
    """Gradients one example at a time, projected by a dense matrix that is drawn anew for every 16 rows."""

    COLUMNS, BYTES = 128, 2**31  # of a drawn block

    def __init__(self, model: nn.Module, features: FeaturesConfig, moments: AdamMoments, device: torch.device) -> None:
        self._model, self._device = model, device
        self._weights = lora_weights(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name)
        self._dimension = features.projector.dimension
        self._direction = make_direction(features.direction, self._weights, moments)

    def run(self, batches: list[list[TokenizedExample]]) -> None:
        examples = [example for batch in batches for example in batch]
        for start in range(0, len(examples), LOOP_BATCH):
            self._project(torch.stack([self._gradient(e) for e in examples[start : start + LOOP_BATCH]]))

    def _gradient(self, example: TokenizedExample) -> Tensor:
        made = make_batch([example], self._device)
        labels_BS = torch.full_like(made.input_ids_BS, -100)
        labels_BS.view(-1)[made.position_n + 1] = made.label_n
        self._model(input_ids=made.input_ids_BS, labels=labels_BS)[0].backward()
        pieces = []
        for weight in self._weights:
            grad = weight.module.weight.grad
            assert grad is not None
            pieces.append(self._direction(weight, grad.reshape(1, -1))[0])
            weight.module.weight.grad = None
        return torch.cat(pieces)

    def _project(self, grad_BP: Tensor) -> Tensor:
        P, D = grad_BP.shape[1], self._dimension
        columns = max(1, min(D, self.COLUMNS, self.BYTES // (4 * P)))
        sign_Pc, out_BD = grad_BP.new_empty(P, columns), grad_BP.new_zeros(len(grad_BP), D)
        generator = torch.Generator(self._device)
        for start in range(0, D, columns):
            generator.manual_seed(start)
            sign_Pc.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)
            width = min(columns, D - start)
            out_BD[:, start : start + width] = grad_BP @ sign_Pc[:, :width]
        return out_BD


def built_in_model(name: str, dtype: torch.dtype, device: torch.device, seed: int) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    layers, hidden, inner, heads, kv_heads, vocabulary, tied = SHAPES[name]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=tied,
        dtype=dtype,
    )
    torch.manual_seed(seed)
    with device:
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            model = LlamaForCausalLM(config)
        finally:
            torch.set_default_dtype(before)
    model.config.use_cache = False
    return model.eval()


def with_adapter(base: Any, args: argparse.Namespace) -> Any:
    """Return the base with a LoRA adapter that is not zero and has no dropout."""
    lora = LoraConfig(r=args.rank, alpha=2 * args.rank, dropout=0.0, targets=tuple(args.targets.split(",")))
    model = attach_new_adapter(base, lora, seed=0)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                parameter.normal_(0, 0.02)
    return model.eval()


def some_moments(model: nn.Module) -> AdamMoments:
    torch.manual_seed(2)
    first = {w.name: 1e-3 * torch.randn_like(w.module.weight.detach()) for w in lora_weights(model)}
    second = {name: value.square() + 1e-9 for name, value in first.items()}
    return AdamMoments(first, second, beta1=0.9, beta2=0.999, epsilon=1e-8, step=100)


def read_pool(path: str, rows: int) -> list[Record]:
    """Return usable records at equal distances over the whole pool."""
    records = []
    for file in resolve_files([path], ".", "--data"):
        for _, raw in read_rows(file, 2**24, 2**40):
            with contextlib.suppress(BadRow):
                if not isinstance(raw, BadRow):
                    records.append(parse_record(raw))
    at = np.unique(np.linspace(0, len(records) - 1, min(rows, len(records))).astype(int))
    return [records[i] for i in at]


def pool_examples(args: argparse.Namespace, vocabulary: int) -> list[TokenizedExample]:
    rng = np.random.default_rng(0)
    if args.data and args.model not in SHAPES:
        from influray.data.chat import ChatEncoder

        tokenizer = load_tokenizer(ModelConfig(base=args.model))
        encoded = ChatEncoder(tokenizer, "auto", args.max_tokens).encode_many(read_pool(args.data, args.rows))
        kept = [found for found in encoded if not isinstance(found, BadRow) and found.loss_tokens]
        return [TokenizedExample(row, found.input_ids, found.loss_mask) for row, found in enumerate(kept)]
    if args.data:
        records = read_pool(args.data, args.rows)
        answers = [sum(len(turn.content) for turn in r.turns if turn.role == "assistant") for r in records]
        characters = [sum(len(turn.content) for turn in r.turns) for r in records]
        sizes = [(max(1, whole // 4), max(1, part // 4)) for whole, part in zip(characters, answers, strict=True)]
    else:
        lengths = np.clip(np.exp(rng.normal(np.log(160), 0.6, args.rows)), 8, 512).astype(int)
        shares = rng.uniform(0.2, 0.8, args.rows)
        sizes = [(int(n), max(1, int(n * share))) for n, share in zip(lengths, shares, strict=True)]
    examples = []
    for row, (tokens, answer) in enumerate(sizes):
        length = max(2, min(tokens, args.max_tokens))
        mask = np.arange(length) >= max(1, length - answer)
        examples.append(TokenizedExample(row, rng.integers(3, vocabulary, length).astype(np.int32), mask))
    return examples


def roofline(device: torch.device, dtype: torch.dtype) -> tuple[float, float]:
    """Return the (operations, bytes) a second of a large matrix product and a large copy, the best of several."""
    clock = Clock(device)
    side, size = (1536, 2**26) if device.type == "cpu" else (8192, 2**30)
    a, b, product = (torch.zeros(side, side, device=device, dtype=dtype).normal_() for _ in range(3))
    source, copied = (torch.zeros(size // 4, device=device) for _ in range(2))

    def best(work: Callable[[], Any]) -> float:
        times = []
        for _ in range(6):
            start = clock()
            work()
            times.append(clock() - start)
        return min(times)

    return 2 * side**3 / best(lambda: torch.mm(a, b, out=product)), 2 * size / best(lambda: copied.copy_(source))


def packed_flops(x_shape: torch.Size, weight_shape: torch.Size, *_: Any, **__: Any) -> int:
    return 2 * x_shape.numel() * weight_shape[0]


class Benchmark:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.set_num_threads(args.threads)
        self.device = torch.device(args.device)
        self.dtype = args.dtype or ("float32" if self.device.type == "cpu" else "bfloat16")
        self.clock = Clock(self.device)
        self.against = [name for name in args.against.split(",") if name]
        unknown = set(self.against) - set(AGAINST)
        if unknown:
            raise ConfigError(f"--against: no {sorted(unknown)[0]!r}; there are {', '.join(AGAINST)}")
        base = self._base()
        adapted = with_adapter(copy.deepcopy(base), args)
        self.examples = pool_examples(args, base.config.vocab_size)
        options = dict(part.split("=") for part in args.options.split(",") if part)
        self.features = FeaturesConfig.model_validate(
            {
                "direction": args.direction,
                "projector": {
                    "name": args.projector,
                    "dimension": args.dimension,
                    "options": {name: int(value) for name, value in options.items()},
                },
            }
        )
        self.parameters = sum(weight.size for weight in lora_weights(adapted))
        self.size = sum(parameter.numel() for parameter in base.parameters())
        moments = some_moments(adapted)
        self.ours = Ours(adapted, self.features, moments, self.device, args.step)
        lengths = [example.tokens for example in self.examples]
        compute = self.ours.featurizer.compute
        self.budget = resolve_token_budget(args.token_budget or "auto", adapted, self.device, max(lengths), compute)
        planned = plan_batches(lengths, self.budget)  # of a whole shard, so that padding is what it is there
        chosen = len(planned) if args.packing else min(args.batches, len(planned))
        at = np.unique(np.linspace(0, len(planned) - 1, chosen).round().astype(int))
        self.batches = [[self.examples[i] for i in planned[n]] for n in at]
        plan = plan_packed(lengths, self.budget) if args.packing else [[planned[n]] for n in at]
        self.batch_tokens = batch_tokens(lengths, plan)
        self.stacks = [[[self.examples[i] for i in stack] for stack in batch] for batch in plan]  # of ours
        self.examples = [example for batch in self.batches for example in batch]
        self.contestants: dict[str, Any] = {"ours": self.ours}
        if "serial" in self.against:
            self.contestants["serial"] = Serial(self.ours)
        if args.packing:
            if not self.ours.featurizer.can_pack():
                raise ConfigError(f"--packing: batches of {args.model} cannot be packed; leave it out")
            self.contestants["padded"] = Padded(self.ours)
        if "lora_step" in self.against:
            self.contestants["lora_step"] = Step(with_adapter(copy.deepcopy(base), args), False, self.device)
        if "full_step" in self.against:
            self.contestants["full_step"] = Step(copy.deepcopy(base), True, self.device)
        if "loop" in self.against:
            model = with_adapter(copy.deepcopy(base), args)
            self.contestants["loop"] = Loop(model, self.features, moments, self.device)

    def _base(self) -> Any:
        if self.args.model in SHAPES:
            return built_in_model(self.args.model, getattr(torch, self.dtype), self.device, 0)
        config = ModelConfig.model_validate({"base": self.args.model, "dtype": self.dtype})
        return load_base(config, self.device)

    def _work(self, name: str) -> tuple[list[Any], int]:
        """Return a contestant's batches of a round and their tokens without padding."""
        batches = self.batches
        if name in OF_STACKS:
            return self.stacks, sum(example.tokens for example in self.examples)
        if name == "loop":
            ordered = [example for batch in batches for example in batch]
            step = max(1, len(ordered) // self.args.loop_rows)
            batches = [ordered[step // 2 :: step][: self.args.loop_rows]]
        return batches, sum(example.tokens for batch in batches for example in batch)

    def run(self) -> dict[str, Any]:
        """Print the tables and return their figures."""
        self._describe()
        shortest = self.batches[0][:1]
        peaks: dict[str, list[float]] = {name: [] for name in self.contestants}
        for name, contestant in self.contestants.items():  # once for what is made once: kernels, tables, caches
            contestant.run([[shortest]] if name in OF_STACKS else [shortest])
        self.ours.run(self.stacks)
        seconds: dict[str, list[float]] = {name: [] for name in self.contestants}  # per token
        for number in range(self.args.rounds):
            names = list(self.contestants)
            for name in names if number % 2 == 0 else names[::-1]:
                batches, tokens = self._work(name)
                with self.clock.peak_memory(peaks[name]):
                    start = self.clock()
                    self.contestants[name].run(batches)
                    seconds[name].append((self.clock() - start) / tokens)
        self._contest(seconds, peaks)
        rounds = {name: [b / a for a, b in zip(found, seconds["ours"], strict=True)] for name, found in seconds.items()}
        return {
            "model": self.args.model,
            "dtype": self.dtype,
            "parameters": self.size,
            "coordinates": self.parameters,
            "token_budget": self.budget,
            "step": self.ours.featurizer.step,
            "tokens_per_second": {name: 1 / statistics.median(found) for name, found in seconds.items()},
            "ours_over": {name: statistics.median(ratios) for name, ratios in rounds.items() if name != "ours"},
            "peak_gib": {name: max(found) for name, found in peaks.items() if found},
            **self._stages(),
        }

    def _describe(self) -> None:
        args = self.args
        tokens = sum(example.tokens for example in self.examples)
        trained = sum(example.loss_tokens for example in self.examples)
        padded = sum(len(batch) * max(e.tokens for e in batch) for batch in self.batches)
        machine = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else _processor()
        print(f"{datetime.now(UTC):%Y-%m-%d}, {machine}, {args.threads} thread(s), torch {torch.__version__}")
        print(
            f"{args.model}: {self.size:,} parameters in {self.dtype}, LoRA rank {args.rank} on {args.targets}: "
            f"{self.parameters:,} gradient coordinates"
        )
        print(
            f"{args.direction} direction, {args.projector} {args.options} to {args.dimension}; "
            f"{self.ours.featurizer.head} head, {self.ours.featurizer.step} step"
        )
        print(
            f"{len(self.examples)} rows of {args.data or 'log-normal lengths'}: {tokens:,} tokens, "
            f"{trained / tokens:.0%} of them trained, {padded / tokens - 1:.1%} padding; {len(self.batches)} batches "
            f"of at most {self.budget:,}"
        )
        if args.packing:
            stacks = sum(map(len, self.stacks))
            print(f"packed: {self.batch_tokens / tokens - 1:.1%} padding; {len(self.stacks)} batches, {stacks} stacks")
        print()

    def _contest(self, seconds: dict[str, list[float]], peaks: dict[str, list[float]]) -> None:
        unit = "CPU" if self.device.type == "cpu" else "GPU"
        print(f"{'':>10} {f'tokens/{unit} s':>13} {f'{unit} ms/row':>11} {'x ours':>7} {'rounds':>15} {'peak GiB':>9}")
        per_row = sum(example.tokens for example in self.examples) / len(self.examples)
        for name, found in seconds.items():
            ratios = sorted(theirs / ours for theirs, ours in zip(found, seconds["ours"], strict=True))
            middle, peak = statistics.median(found), f"{max(peaks[name]):.2f}" if peaks[name] else "-"
            print(
                f"{name:>10} {1 / middle:13,.0f} {middle * per_row * 1e3:11.2f} {statistics.median(ratios):7.2f} "
                f"{f'{ratios[0]:.2f} - {ratios[-1]:.2f}':>15} {peak:>9}"
            )
        for name, found in seconds.items():
            if name != "ours":
                share = statistics.median(a / b for a, b in zip(seconds["ours"], found, strict=True))
                print(f"time: ours / {name} = {share:.3f}")

    def _stages(self) -> dict[str, float]:
        """Run ours stage by stage: once for the time, once for the operations. Return the share of the matrix peak."""
        matrix, copies = roofline(self.device, getattr(torch, self.dtype))
        watched = Stages(self.clock, lambda: 0.0)
        self.ours.watch(watched)
        for _ in range(max(1, self.args.rounds)):
            self.ours.run(self.stacks)
        spent = dict(watched.seconds)  # what follows is timed too, and slow
        packed = {torch.ops.mkldnn._linear_pointwise: packed_flops} if self.device.type == "cpu" else {}
        with FlopCounterMode(display=False, custom_mapping=packed) as counter:
            counted = Stages(lambda: 0.0, lambda: float(counter.get_total_flops()))
            self.ours.watch(counted)
            self.ours.run(self.stacks)
        block = 4.0 * self.parameters * len(self.examples)  # bytes of all rows' gradients, in float32
        moved = {"products": block, "norms": block, "direction": 2 * block, "projection": block}
        moved["step"] = block
        total = sum(spent.values())
        rows = len(self.examples) * max(1, self.args.rounds)
        print(f"\nroofline here: {matrix / 1e9:,.0f} GFLOP/s in a matrix product, {copies / 1e9:,.1f} GB/s in a copy")
        print(f"{'stage':>10} {'ms/row':>8} {'share':>6} {'MFLOP/row':>10} {'MB/row':>7} {'of roofline':>11}")
        for stage in STAGES:
            seconds = spent.get(stage, 0.0) / rows
            flops, size = counted.flops[stage] / len(self.examples), moved.get(stage, 0.0) / len(self.examples)
            bound = max(flops / matrix, size / copies)
            print(
                f"{stage:>10} {seconds * 1e3:8.2f} {seconds * rows / total:6.1%} {flops / 1e6:10.1f} {size / 1e6:7.2f} "
                f"{bound / seconds if bound and seconds else 0:11.0%}"
            )
        operations = sum(counted.flops.values()) / len(self.examples)
        return {"matrix_flops": matrix, "copy_bytes": copies, "of_matrix_peak": operations * rows / total / matrix}


def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line for line in lines if line.startswith("model name")).split(":")[1].strip()
        return f"{name}, {os.cpu_count()} cores"
    return f"{platform.machine()}, {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser(description="What gradient features cost, beside training steps.")
    parser.add_argument("model", nargs="?", default="llama-5m", help=f"a folder, or one of {', '.join(SHAPES)}")
    parser.add_argument("--data", default="", help="a pool: JSONL (.gz, .zst), Parquet or a folder")
    parser.add_argument("--against", default="lora_step", help=f"any of {','.join(AGAINST)}")
    parser.add_argument("--rank", type=int, default=128)
    parser.add_argument("--targets", default="q_proj,k_proj,v_proj,o_proj")
    parser.add_argument("--direction", default="adam", choices=("adam", "sgd", "sign"))
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--projector", default="sparse_jl")
    parser.add_argument("--options", default="", help="of the projector: nonzeros=1,cache_bytes=0")
    parser.add_argument(
        "--step",
        default="auto",
        choices=("auto", "torch", "fused"),
        help="of ours: PyTorch's own operations, or one kernel",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=512, help="of a shard")
    parser.add_argument("--batches", type=int, default=5, help="of the shard, spread over all lengths: those are run")
    parser.add_argument("--loop-rows", type=int, default=16, help="of the rows, for the loop, spread over all lengths")
    parser.add_argument("--max-tokens", type=int, default=512)
    parser.add_argument("--token-budget", type=int, default=0, help="padded tokens a batch; 0 = auto")
    parser.add_argument("--packing", action="store_true", help="ours packed, beside padded; takes the whole shard")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="", help="of the base; float32 on a CPU, else bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    found = Benchmark(args).run()
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
