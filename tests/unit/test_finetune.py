"""Fine-tuning: objective, order, rates and moments against a plain loop; resuming; refusals."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import get_scheduler

from influray.config_model import FinetuneConfig, WarmupConfig
from influray.model.checkpoints import load_checkpoint
from influray.model.finetune import finetune, warmup_rows
from influray.model.schedule import learning_rate_factor
from influray.model.step_plan import StepPlan, seeded_order
from influray.protocols import ConfigError, DataError, TokenizedExample
from tests.reference.finetune_loop import train
from tests.tiny import tiny_llama


def adapted(seed: int = 0, dtype: torch.dtype = torch.float64, dropout: float = 0.0):
    model = tiny_llama(seed=seed, dtype=dtype)
    config = LoraConfig(r=2, lora_alpha=8, lora_dropout=dropout, target_modules=["q_proj", "v_proj"])
    torch.manual_seed(seed)
    model = get_peft_model(model, config)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.1)  # with B = 0, as peft starts, half of all gradients would be zero
    return model


def random_examples(n: int, seed: int = 0) -> list[TokenizedExample]:
    rng = np.random.default_rng(seed)
    examples = []
    for row in range(n):
        tokens = int(rng.integers(3, 14))
        mask = np.zeros(tokens, bool)
        mask[1:] = rng.random(tokens - 1) < 0.5
        mask[-1] = True
        examples.append(TokenizedExample(100 + row, rng.integers(5, 261, tokens).astype(np.int32), mask))
    return examples


def settings(**changes) -> FinetuneConfig:
    base = {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "device_batch_size": 2, "weight_decay": 0.1}
    return FinetuneConfig(**{**base, "warmup_ratio": 0.2, "max_grad_norm": 0.5, "seed": 3, **changes})


def trained(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("n", "changes"),
    [
        (8, {"device_batch_size": 4}),  # one pass a step
        (8, {"device_batch_size": 1}),  # accumulation, one example a pass
        (10, {"device_batch_size": 3}),  # passes of 3 and 1; a last step of 2
        (3, {"batch_size": 128, "epochs": 3}),  # every step smaller than batch_size
        (9, {"schedule": "cosine", "max_grad_norm": 0.0, "adam_beta2": 0.95}),
        (7, {"steps": 3, "schedule": "constant"}),  # stops within the second epoch
    ],
)
def test_loop_equals_the_plain_float64_loop(tmp_path, n, changes):
    examples, config = random_examples(n), settings(**changes)
    plan = StepPlan(n, config.batch_size, config.device_batch_size, 1, config.seed)
    total = config.steps or config.epochs * plan.steps_per_epoch
    steps = [step for epoch in range(math.ceil(total / plan.steps_per_epoch)) for step in plan.steps(epoch)][:total]
    rates = [
        config.learning_rate * learning_rate_factor(s, total, config.schedule, config.warmup_ratio)
        for s in range(total)
    ]
    expected_model, model = adapted(), adapted()
    expected = train(expected_model, [[examples[i] for i in step] for step in steps], rates, config)

    result = finetune(model, examples, config, tmp_path)

    assert result.steps == total
    np.testing.assert_allclose(result.losses, expected["losses"], rtol=1e-9)
    np.testing.assert_allclose(result.learning_rates, rates, rtol=1e-12)
    for name, value in trained(expected_model).items():
        torch.testing.assert_close(trained(model)[name], value, rtol=1e-7, atol=1e-10)
    moments = result.checkpoints[-1].moments()
    assert moments.step == total
    assert (moments.beta1, moments.beta2) == (config.adam_beta1, config.adam_beta2)
    for kind in ("exp_avg", "exp_avg_sq"):
        for name, value in expected[kind].items():
            torch.testing.assert_close(getattr(moments, kind)[name], value, rtol=1e-7, atol=1e-14)


def test_objective_does_not_weigh_examples_by_their_tokens(tmp_path):
    ids = np.arange(5, 15, dtype=np.int32)
    short = TokenizedExample(0, ids[:3], np.array([False, False, True]))
    long = TokenizedExample(1, ids, np.array([False] + [True] * 9))
    config = settings(batch_size=2, device_batch_size=1, steps=1, warmup_ratio=0, learning_rate=1e-9)
    loss = finetune(adapted(), [short, long], config, tmp_path / "both").losses[0]
    alone = [finetune(adapted(), [e], config, tmp_path / str(e.row)).losses[0] for e in (short, long)]
    assert loss == pytest.approx(sum(alone) / 2, rel=1e-9)
    assert loss != pytest.approx((alone[0] + 9 * alone[1]) / 10, rel=1e-3)


def test_each_epoch_takes_every_example_once_in_another_order():
    plan = StepPlan(examples=11, batch_size=4, device_batch_size=2, ranks=1, seed=0)
    epochs = [np.concatenate(plan.steps(epoch)) for epoch in range(3)]
    for order in epochs:
        assert sorted(order) == list(range(11))
    assert not np.array_equal(epochs[0], epochs[1])
    assert np.array_equal(epochs[1], np.concatenate(replace(plan, device_batch_size=1, ranks=4).steps(1)))


@pytest.mark.parametrize("n", [1, 4, 11])
def test_a_training_in_tokens_ends_with_the_step_that_reaches_them(n):
    plan = StepPlan(examples=n, batch_size=4, device_batch_size=2, ranks=1, seed=5)
    tokens_N = np.random.default_rng(n).integers(1, 50, n)
    through, steps = 0, 0
    for epoch in range(4):
        for step in plan.steps(epoch):
            for wanted in range(through + 1, through + tokens_N[step].sum() + 1):
                assert plan.steps_reaching(wanted, tokens_N) == steps + 1, wanted
            through += tokens_N[step].sum()
            steps += 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [1, 7, 12, 13])
def test_weights_over_all_ranks_sum_to_one_in_every_step_however_uneven_they_are(n, ranks):
    plan = StepPlan(examples=n, batch_size=6, device_batch_size=2, ranks=ranks, seed=1)
    passes = [list(plan.passes(0, rank)) for rank in range(ranks)]
    assert len({len(p) for p in passes}) == 1, "ranks would wait for each other for ever"
    start = 0
    for index, step in enumerate(plan.steps(0)):
        last = index == plan.steps_per_epoch - 1
        stop = len(passes[0]) if last else start + plan.accumulation
        weights: dict[int, float] = {}
        for rank in range(ranks):
            for one in passes[rank][start:stop]:
                assert one, "a rank without an example cannot take part in the gradient exchange"
                for position, weight in one:
                    weights[position] = weights.get(position, 0.0) + weight
        assert weights == pytest.approx({int(i): 1 / len(step) for i in step})
        start = stop
    assert start == len(passes[0])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
@pytest.mark.parametrize(("total", "ratio"), [(1, 0.0), (7, 0.0), (7, 0.3), (40, 0.03)])
def test_learning_rates_are_those_of_transformers(schedule, total, ratio):
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    name = "constant_with_warmup" if schedule == "constant" else schedule
    scheduler = get_scheduler(name, optimizer, math.ceil(ratio * total), total)
    for step in range(total):
        assert learning_rate_factor(step, total, schedule, ratio) == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()


def test_mean_learning_rate_is_the_mean_over_the_epochs_own_steps(tmp_path):
    result = finetune(adapted(), random_examples(6), settings(epochs=3, batch_size=2), tmp_path)
    by_epoch = np.array(result.learning_rates).reshape(3, 3).mean(1)
    np.testing.assert_allclose(result.mean_learning_rates, by_epoch, rtol=1e-12)
    assert [c.mean_learning_rate for c in result.checkpoints] == list(result.mean_learning_rates)
    assert [c.state["epoch"] for c in result.checkpoints] == [1, 2, 3]
    assert result.learning_rates[0] == 0.0  # rising from 0, as transformers counts


class Killed(Exception):
    pass


@pytest.mark.parametrize("keep", ["all", "last"])
def test_a_killed_run_ends_in_the_bytes_of_an_undisturbed_one(tmp_path, keep):
    examples, config = random_examples(7), settings(epochs=4)

    def run(folder, **options):
        return finetune(adapted(dtype=torch.float32, dropout=0.3), examples, config, folder, keep=keep, **options)

    def kill(checkpoint):
        if checkpoint.state["epoch"] == 2:
            raise Killed

    undisturbed = run(tmp_path / "a")
    with pytest.raises(Killed):
        run(tmp_path / "b", on_epoch_checkpoint=kill)
    (tmp_path / "b" / ".checkpoint-3.0.tmp").mkdir()  # what a kill in the middle of writing leaves
    seen = []
    resumed = run(tmp_path / "b", on_epoch_checkpoint=lambda c: seen.append(c.state["epoch"]))

    assert seen == [3, 4]
    assert resumed.losses == undisturbed.losses
    names = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*"))
    assert names == sorted(p.relative_to(tmp_path / "b") for p in (tmp_path / "b").rglob("*"))
    for name in names:
        if (tmp_path / "a" / name).is_file():
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


def test_a_finished_run_is_not_trained_again_but_loaded(tmp_path):
    examples, config = random_examples(5), settings()
    first = adapted()
    finetune(first, examples, config, tmp_path)
    second, seen = adapted(), []
    result = finetune(second, examples, config, tmp_path, on_epoch_checkpoint=seen.append)
    assert not seen
    assert result.steps == 4
    for name, value in trained(first).items():
        assert torch.equal(trained(second)[name], value)


@pytest.mark.parametrize("change", ["config", "examples", "identity"])
def test_checkpoints_of_another_training_are_not_resumed_from(tmp_path, change):
    examples, config = random_examples(5), settings()
    finetune(adapted(), examples, config, tmp_path)
    other_examples, other, identity = examples, config, ""
    if change == "config":
        other = config.model_copy(update={"learning_rate": 1e-3})
    elif change == "examples":
        flipped = examples[0].input_ids_S.copy()
        flipped[0] += 1
        other_examples = [replace(examples[0], input_ids_S=flipped), *examples[1:]]
    else:
        identity = "another base"
    seen = []
    finetune(adapted(), other_examples, other, tmp_path, identity=identity, on_epoch_checkpoint=seen.append)
    assert len(seen) == other.epochs


def test_fields_that_say_which_rows_are_not_part_of_a_training(tmp_path):
    examples = random_examples(5)
    base = settings().model_dump()
    finetune(adapted(), examples, WarmupConfig(**base, fraction=0.5), tmp_path)
    seen = []
    finetune(adapted(), examples, WarmupConfig(**base, fraction=0.4), tmp_path, on_epoch_checkpoint=seen.append)
    assert not seen, "the same rows were trained on: the fraction they come from changes nothing"


def test_keeping_the_last_leaves_one_checkpoint_and_the_same_weights(tmp_path):
    examples, config = random_examples(5), settings(epochs=3)
    every = finetune(adapted(), examples, config, tmp_path / "all")
    last = finetune(adapted(), examples, config, tmp_path / "last", keep="last", seconds_between=1e9)
    assert [c.folder.name for c in last.checkpoints] == ["checkpoint-3"]
    assert last.checkpoints[0].digest == every.checkpoints[-1].digest


def test_seed_changes_order_and_dropout_and_nothing_else_does(tmp_path):
    examples = random_examples(6)
    before = torch.random.get_rng_state()

    def losses(folder, **changes):
        return finetune(adapted(dropout=0.2), examples, settings(**changes), tmp_path / folder).losses

    one = losses("a")
    torch.manual_seed(99)
    np.random.seed(99)
    assert losses("b") == one
    assert losses("c", seed=4) != one
    torch.random.set_rng_state(before)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_loss_that_is_not_finite_names_step_and_rows_and_spoils_no_checkpoint(tmp_path):
    examples, config = random_examples(4), settings(batch_size=2, learning_rate=1e-3, warmup_ratio=0)
    poisoned = 261 - 1
    for example in examples:
        example.input_ids_S[example.input_ids_S == poisoned] = 7
    examples[2].input_ids_S[0] = poisoned
    model = adapted()
    with torch.no_grad():
        model.get_input_embeddings().weight = torch.nn.Parameter(
            model.get_input_embeddings().weight.clone(), requires_grad=False
        )
        model.get_input_embeddings().weight[poisoned] = math.nan
    with pytest.raises(DataError, match=r"optimizer step \d of 4 \(rows \[102\]\)"):
        finetune(model, examples, config, tmp_path)
    for folder in tmp_path.glob("checkpoint-*"):
        for tensor in load_checkpoint(folder).moments().exp_avg.values():
            assert torch.isfinite(tensor).all()


def test_what_cannot_be_trained_is_refused_with_the_mend(tmp_path):
    examples = random_examples(3)
    with pytest.raises(ConfigError, match=r"tune\.warmup_ratio: 0\.2 of 1 optimizer"):
        finetune(adapted(), examples, settings(steps=1), tmp_path)
    with pytest.raises(DataError, match="no examples"):
        finetune(adapted(), [], settings(), tmp_path)
    empty = replace(examples[0], loss_mask_S=np.zeros_like(examples[0].loss_mask_S))
    with pytest.raises(DataError, match="row 100"):
        finetune(adapted(), [empty], settings(), tmp_path)
    with pytest.raises(ConfigError, match="nothing to train"):
        finetune(adapted().requires_grad_(False), examples, settings(), tmp_path)
    with pytest.raises(ConfigError, match="float16"):
        finetune(adapted(dtype=torch.float16), examples, settings(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_training_leaves_the_model_ready_for_use_and_stdout_empty(tmp_path, capsys):
    model = adapted(dropout=0.5)
    model.config.use_cache = True
    finetune(model, random_examples(3), settings(), tmp_path)
    assert not model.training
    assert model.config.use_cache
    assert capsys.readouterr().out == ""
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("n", "fraction", "size"), [(100, 0.29, 29), (100, 1.0, 100), (7, 0.05, 1), (10, 0.999, 9)])
def test_warmup_rows_are_a_sorted_sample_of_the_written_fraction(n, fraction, size):
    rows = warmup_rows(n, fraction, seed=5)
    assert rows.dtype == np.int64
    assert len(rows) == size
    assert np.array_equal(rows, np.unique(rows))
    assert rows[0] >= 0
    assert rows[-1] < n


def test_warmup_rows_are_uniform_and_follow_the_seed():
    counts = np.zeros(20)
    for seed in range(400):
        counts[warmup_rows(20, 0.25, seed)] += 1
    assert abs(counts - 100).max() < 5 * math.sqrt(400 * 0.25 * 0.75)
    assert not np.array_equal(warmup_rows(50, 0.5, 0), warmup_rows(50, 0.5, 1))
    # Raw PCG64 output is fixed by numpy for good: another sample here is another experiment.
    assert warmup_rows(20, 0.25, 0).tolist() == [2, 3, 11, 13, 15]
    assert sorted(seeded_order(10, 1, 2)) == list(range(10))


def test_no_rows_to_warm_up_on_is_an_error():
    with pytest.raises(DataError, match="no usable row"):
        warmup_rows(0, 0.5, 0)
