"""Batches made ahead and results taken in later: the same bytes as one after the other, and two batches at most."""

from __future__ import annotations

import gc
import threading
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.data.batches import plan_batches
from influray.features.gradient import GradientFeaturizer
from influray.model.transfers import BatchSender, Results, one_ahead
from influray.protocols import TokenizedExample
from influray.store.artifact import ShardStore
from influray.store.datastore import PartBuilder, feature_table
from tests.unit.test_example_gradients import example, mixed_batch
from tests.unit.test_gradient_features import adapted, config

FIELDS = ("row_B", "feature_BD", "norm_B", "grad_norm_B", "loss_B", "loss_tokens_B")


def threads(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


@given(st.lists(st.integers(), max_size=9))
def test_everything_comes_in_order(items):
    assert list(one_ahead(lambda item: item + 1, items)) == [item + 1 for item in items]


def test_one_is_made_ahead_and_no_more():
    asked = []
    ahead = one_ahead(lambda item: item, (asked.append(i) or i for i in range(6)))
    for number in range(6):
        assert next(ahead) == number
        assert asked == list(range(min(6, number + 2)))


def test_an_error_comes_in_the_place_of_its_item_and_ends_the_thread():
    error = ValueError("the third")

    def make(item):
        if item == 2:
            raise error
        return item

    ahead = one_ahead(make, range(5))
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(ValueError, match="the third") as caught:
        next(ahead)
    assert caught.value is error
    assert not threads("ahead")


def test_who_stops_early_leaves_no_thread():
    ahead = one_ahead(lambda item: item, range(5))
    next(ahead)
    assert threads("ahead")
    ahead.close()
    assert not threads("ahead")


def test_on_a_cpu_nothing_is_copied():
    sent = BatchSender(torch.device("cpu")).send(mixed_batch())
    assert sent.arrive() is sent.batch
    value = torch.arange(3)
    assert Results(value).wait()[0].ctypes.data == value.data_ptr()


@pytest.fixture(scope="module")
def featurizer():
    """A vocabulary entry of its model is not a number."""
    model = adapted(tie_word_embeddings=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[200] = torch.nan
    return GradientFeaturizer(model, config("sparse_jl", 64), None, "sgd")


def a_shard(seed: int, rows: int) -> list[TokenizedExample]:
    """Rows of many lengths; some have no trained token, some meet the entry that is not a number."""
    rng = np.random.default_rng(seed)
    examples = []
    for row in range(rows):
        length = int(rng.integers(2, 30))
        ids = rng.integers(3, 190, length).astype(np.int32)
        mask = (rng.random(length) < 0.5) & (np.arange(length) > 0)
        if rng.random() < 0.1:
            ids[rng.integers(length)] = 200
        examples.append(TokenizedExample(row, ids, mask if rng.random() < 0.8 else np.zeros(length, bool)))
    return examples


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 20), budget=st.integers(8, 120), number=st.integers(0, 2))
def test_a_shard_has_the_bytes_of_a_plain_loop(featurizer, tmp_path_factory, seed, rows, budget, number):
    examples, encoding = a_shard(seed, rows), ("float16", "int8", "sign1")[number]
    batches = [[examples[i] for i in batch] for batch in plan_batches([e.tokens for e in examples], budget)]
    loop = [featurizer.compute(batch) for batch in batches]
    found = []
    with PartBuilder(64, encoding) as part:
        for block in featurizer.compute_all(batches):
            found.append(block)
            part.add(block)
        table = part.table()
    assert [block.failures for block in found] == [block.failures for block in loop]
    for name in FIELDS:
        for ours, plain in zip(found, loop, strict=True):
            assert getattr(ours, name).tobytes() == getattr(plain, name).tobytes()
    store = ShardStore(tmp_path_factory.mktemp("shard"))
    first, second = (
        store.commit(key, made, {}) for key, made in (("a", table), ("b", feature_table(loop, 64, encoding)))
    )
    assert first.sha256 == second.sha256


def test_a_part_of_nothing_is_none_and_what_encoding_raises_arrives_unchanged(featurizer):
    with PartBuilder(64, "float16") as part:
        assert part.table() is None
    block = featurizer.compute(mixed_batch()[:2])
    with PartBuilder(63, "float16") as part:
        part.add(block)
        with pytest.raises(AssertionError, match="rows have 64 numbers, its dimension is 63"):
            part.table()
    assert not threads("part")


def test_no_more_than_two_batches_are_there(featurizer, monkeypatch):
    made: list[weakref.ref[torch.Tensor]] = []
    most = 0
    make_batch = BatchSender.send

    def watched(sender, examples):
        nonlocal most
        sent = make_batch(sender, examples)
        made.append(weakref.ref(sent.batch.input_ids_BS))
        most = max(most, sum(ref() is not None for ref in made))
        return sent

    monkeypatch.setattr(BatchSender, "send", watched)
    batches = [[example(row, 5 + row, [(2, 5 + row)])] for row in range(8)]
    gc.collect()
    assert len(list(featurizer.compute_all(batches))) == 8
    assert len(made) == 8
    assert most <= 2
    assert not any(ref() is not None for ref in made)


def test_running_out_of_memory_in_the_third_batch_is_raised_as_it_is(featurizer, monkeypatch):
    error, run, begun = torch.OutOfMemoryError("CUDA out of memory"), featurizer._gradients.run, []

    def tight(batch, consume):
        begun.append(batch.input_ids_BS.shape)
        if len(begun) == 3:
            raise error
        return run(batch, consume)

    batches = [[example(row, 9, [(2, 9)])] for row in range(5)]
    expected = featurizer.compute(batches[0])
    with monkeypatch.context() as patched:
        patched.setattr(featurizer._gradients, "run", tight)
        blocks = featurizer.compute_all(batches)
        assert next(blocks).feature_BD.tobytes() == expected.feature_BD.tobytes()
        with pytest.raises(torch.OutOfMemoryError) as caught:
            list(blocks)
    assert caught.value is error
    assert not threads("ahead")
    assert featurizer.compute(batches[0]).feature_BD.tobytes() == expected.feature_BD.tobytes()
