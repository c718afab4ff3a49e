"""Losses and matches against decoding written out, the matching rule, and the numbers over tasks and seeds."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders

from influray.evaluation.answer_loss import score_answers
from influray.evaluation.exact_match import end_tokens, greedy_decode, greedy_exact_match, matches, prompt_of
from influray.evaluation.summary import over_seeds, summarise
from influray.model.loading import tokenizer_digest, writing_digest
from influray.protocols import TokenizedExample
from tests.reference.finetune_loop import example_loss
from tests.reference.greedy import greedy
from tests.tiny import byte_tokenizer, tiny_llama

END = 4  # <|im_end|>


@pytest.fixture(scope="module")
def model():
    """A random model in float64: rounding is far below the gaps between its logits."""
    return tiny_llama(seed=1, dtype=torch.float64)


@pytest.fixture(scope="module")
def ends(model):
    """Tokens taken as ends: some of those that the model writes late, so that some texts end and others do not."""
    late = [greedy(model, prompt, set(), 20)[8] for prompt in prompts(12)[:4]]
    return {END, *late}


def prompts(n: int, seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 261, int(rng.integers(1, 12))).astype(np.int32) for _ in range(n)]


def example(row: int, prompt, answer, end: bool = True) -> TokenizedExample:
    ids = np.array([*prompt, *answer, *([END] if end else [])], np.int32)
    return TokenizedExample(row, ids, np.arange(len(ids)) >= len(prompt))


def test_losses_are_those_of_one_example_at_a_time(model):
    rng = np.random.default_rng(3)
    examples = [example(i, p, rng.integers(5, 261, int(rng.integers(1, 9)))) for i, p in enumerate(prompts(9))]
    with torch.no_grad():
        expected = [example_loss(model, e).item() for e in examples]
    for token_budget in (1, 30, 10_000):
        np.testing.assert_allclose(score_answers(model, examples, token_budget)[0], expected, rtol=1e-9)


@pytest.mark.parametrize("max_new_tokens", [1, 7, 20])
def test_cached_batched_decoding_equals_decoding_written_out(model, ends, max_new_tokens):
    given_prompts = prompts(12)
    expected = [greedy(model, p, ends, max_new_tokens) for p in given_prompts]
    if max_new_tokens == 20:
        assert {len(e) < 20 for e in expected} == {True, False}, "the test needs texts that end and texts that do not"
    for token_budget in (1, 80, 10_000):
        found = greedy_decode(model, given_prompts, ends, max_new_tokens, token_budget)
        assert [f.tolist() for f in found] == expected


def test_teacher_forced_match_is_equal_to_greedy_decoding_writing_that_answer(model):
    rng = np.random.default_rng(5)
    examples, expected = [], []
    for row, prompt in enumerate(prompts(12, seed=2)):
        written = greedy(model, prompt, {END}, 8)
        right = example(row, prompt, written, end=len(written) < 8)
        cut = example(row, prompt, written[: len(written) // 2])  # would stop earlier than the model does
        off = list(written) or [7]
        off[int(rng.integers(len(off)))] += 1
        examples += [right, cut, example(row, prompt, off, end=False)]
    for one in examples:
        answer = one.input_ids_S[one.loss_mask_S].tolist()
        goes_on = greedy(model, one.input_ids_S[~one.loss_mask_S], set(), len(answer))
        expected.append(goes_on == answer)
    found = score_answers(model, examples, 200)[1]
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_a_match_is_asked_of_trained_positions_only(model):
    prompt = prompts(1)[0]
    written = greedy(model, prompt, set(), 4)
    wrong = [t + 1 for t in written]
    ids = np.array([*prompt, *wrong], np.int32)
    mask = np.zeros(len(ids), bool)
    mask[len(prompt)] = True
    ids[len(prompt)] = written[0]
    assert score_answers(model, [TokenizedExample(0, ids, mask)], 100)[1].tolist() == [True]


def test_scores_do_not_depend_on_order_or_batching(model):
    rng = np.random.default_rng(8)
    examples = [example(i, p, rng.integers(5, 261, 4)) for i, p in enumerate(prompts(10, seed=4))]
    loss, match = score_answers(model, examples, 60)
    order = rng.permutation(10)
    other_loss, other_match = score_answers(model, [examples[i] for i in order], 500)
    np.testing.assert_allclose(other_loss, loss[order], rtol=1e-9)
    assert np.array_equal(other_match, match[order])


def test_exact_match_agrees_with_decoding_and_the_rule(model):
    tokenizer = byte_tokenizer()
    given_prompts = prompts(10)
    ends = end_tokens(tokenizer)
    assert ends == {0, 1, 3, 4}, "</s> is no special token of this tokenizer"
    texts = [str(tokenizer.decode(greedy(model, p, ends, 9))) for p in given_prompts]
    examples = [example(i, p, [7, 8]) for i, p in enumerate(given_prompts)]
    answers = [text if i % 2 else "not this" for i, text in enumerate(texts)]
    found = greedy_exact_match(model, tokenizer, examples, answers, max_new_tokens=9, token_budget=100)
    assert found.tolist() == [bool(i % 2) for i in range(10)]


def test_generation_settings_of_the_model_take_no_part(model):
    given_prompts = prompts(3)
    expected = [f.tolist() for f in greedy_decode(model, given_prompts, {END}, 6, 1000)]
    model.generation_config.repetition_penalty = 50.0
    model.generation_config.do_sample = True
    try:
        assert [f.tolist() for f in greedy_decode(model, given_prompts, {END}, 6, 1000)] == expected
    finally:
        model.generation_config.repetition_penalty = None
        model.generation_config.do_sample = None


def test_the_prompt_of_a_dialogue_is_all_before_its_last_trained_turn():
    ids = np.arange(10, 20, dtype=np.int32)
    mask = np.array([0, 0, 1, 1, 0, 0, 0, 1, 1, 1], bool)
    assert prompt_of(TokenizedExample(0, ids, mask)).tolist() == list(range(10, 17))
    assert prompt_of(TokenizedExample(0, ids[:4], mask[:4])).tolist() == [10, 11]


@pytest.mark.parametrize(
    ("generated", "answer", "expected"),
    [
        (" 42\n", "42", True),
        ("42", " 42 ", True),
        ("It is 40+2.\nSo:\n42", "42", True),  # the last line
        ("40+2=42 #### 42", "42", True),
        ("#### 41\n#### 42", "42", True),  # the last of several
        ("#### 41\n42", "42", False),  # after a mark only what follows it counts, and that is two lines
        ("42\nor 43", "42", False),
        ("1,042", "1042", False),
        ("Yes", "yes", False),
        ("", "42", False),
        ("", "", True),
        ("reasons\n#### 42", "other reasons\n#### 42", True),
        ("42", "reasons #### 42", True),
        ("line\nlast", "line\nlast", True),
        ("other\nlast", "line\nlast", False),  # an answer of several lines is not reduced to its last
    ],
)
def test_the_matching_rule(generated, answer, expected):
    assert matches(generated, answer) is expected


@given(st.text(), st.text(alphabet=" \n\t"))
def test_every_text_matches_itself_whatever_space_surrounds_it(text, space):
    assert matches(space + text + space, text)


def test_tasks_count_alike_and_the_worst_is_named():
    tasks = ["a", "a", "a", "b", "c", "c"]
    losses = np.array([1.0, 2.0, 3.0, 5.0, 0.5, 0.5])
    teacher = np.array([True, False, False, False, True, True])
    result = summarise(tasks, losses, teacher, [True, None, False, None, True, True])
    assert result["tasks"]["a"] == {"loss": 2.0, "exact_match": 0.5, "teacher_forced": 1 / 3, "n": 3, "answered": 2}
    assert result["tasks"]["b"]["exact_match"] is None
    assert result["macro"] == {"loss": 2.5, "exact_match": 0.75, "teacher_forced": pytest.approx(4 / 9)}
    assert result["worst"]["loss"] == {"task": "b", "value": 5.0}
    assert result["worst"]["exact_match"] == {"task": "a", "value": 0.5}
    assert result["spread"]["loss"] == pytest.approx(np.std([2.0, 5.0, 0.5]))
    assert json.loads(json.dumps(result)) == result


def test_a_metric_that_no_record_has_is_none():
    result = summarise(["a", "b"], np.ones(2), np.zeros(2, bool), [None, None])
    assert result["macro"]["exact_match"] is None
    assert result["worst"]["exact_match"] is None
    assert over_seeds([result, result])["seeds"]["exact_match"] is None


def test_seeds_are_averaged_task_by_task_and_their_spread_is_of_the_macro_average():
    def one(loss_a, loss_b):
        return summarise(["a", "b"], np.array([loss_a, loss_b]), np.ones(2, bool), [True, False])

    result = over_seeds([one(1.0, 4.0), one(3.0, 2.0), one(2.0, 6.0)])
    assert result["tasks"]["a"]["loss"] == pytest.approx(2.0)
    assert result["tasks"]["b"]["loss"] == pytest.approx(4.0)
    assert result["macro"]["loss"] == pytest.approx(3.0)
    assert result["worst"]["loss"] == {"task": "b", "value": pytest.approx(4.0)}
    macros = [2.5, 2.5, 4.0]
    assert result["seeds"]["loss"] == {
        "n": 3,
        "mean": pytest.approx(3.0),
        "std": pytest.approx(np.std(macros, ddof=1)),
        "min": 2.5,
        "max": 4.0,
    }
    assert over_seeds([one(1.0, 2.0)])["seeds"]["loss"]["std"] is None
    assert not math.isnan(result["spread"]["loss"])


@pytest.mark.parametrize("what", ["decoder", "cleaned up", "special", "nothing"])
def test_how_a_tokenizer_writes_is_part_of_what_exact_match_depends_on(what):
    tokenizer, other = byte_tokenizer(), byte_tokenizer()
    if what == "decoder":
        other.backend_tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(" ", 1, 0)])
    elif what == "cleaned up":
        other.clean_up_tokenization_spaces = not tokenizer.clean_up_tokenization_spaces
    elif what == "special":
        other.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]}, replace_extra_special_tokens=True)
        other.add_special_tokens({"additional_special_tokens": ["<0>"]})
    assert (writing_digest(tokenizer) == writing_digest(other)) == (what == "nothing")
    if what in ("cleaned up", "nothing"):
        assert tokenizer_digest(tokenizer) == tokenizer_digest(other), "tokens are the same: no row is encoded again"
