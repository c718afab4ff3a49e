from __future__ import annotations

import functools
import re

import numpy as np
import pytest
from hypothesis import example as tried
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from influray.data.chat import ChatEncoder
from influray.data.records import BadRow, Record, Turn
from influray.protocols import ConfigError, DataError
from tests.reference import data_mask
from tests.tiny import CHATML, byte_tokenizer

LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start|>{{ m['role'] }}<|end|>\n\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|end|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<|start|>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n{{ m['content'] | trim }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }}[/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
MISTRAL_SYSTEM_LAST = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set sys = messages[0]['content'] %}"
    "{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}{% endif %}"
    "{% for m in loop_messages %}{% if m['role'] == 'user' %}[INST] {% if loop.index0 >= loop.length - 2 and sys is defined %}"
    "{{ sys }}\n\n{% endif %}{{ m['content'] }}[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m['role'] == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% set text = m['content'] %}{% if '</think>' in text %}{% set text = text.split('</think>')[-1] %}{% endif %}"
    "{% if loop.index0 > ns.last %}<think>\n\n</think>\n\n{% endif %}{{ text.lstrip('\n') }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOL_AS_JSON = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'tool' %}{{ m['content'] | tojson }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
)
EXTRA = ["<|start|>", "<|end|>", "<|eot|>", "[INST]", "[/INST]"]
# name -> (template, reference, eos, may the conversation start with a system turn)
TEMPLATES = {
    "chatml": (CHATML, data_mask.chatml, "<|im_end|>", True),
    "llama3": (LLAMA3, data_mask.llama3, "</s>", True),
    "gemma": (GEMMA, data_mask.gemma, "</s>", False),
    "mistral": (MISTRAL, data_mask.mistral, "</s>", False),
    "tulu": (None, data_mask.tulu, "</s>", True),
    "thinking": (THINKING, data_mask.thinking, "<|im_end|>", True),
}


def byte_tokenizer_with(template: str | None, eos: str = "</s>") -> PreTrainedTokenizerFast:
    tokenizer = byte_tokenizer(template, eos)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *EXTRA]})
    return tokenizer


TOKENIZERS = {name: byte_tokenizer_with(template, eos) for name, (template, _, eos, _) in TEMPLATES.items()}


def encoder(name: str, max_tokens: int = 4096, end_token: bool = True) -> ChatEncoder:
    return ChatEncoder(TOKENIZERS[name], "auto", max_tokens, end_token)


def record(*turns: tuple[str, str]) -> Record:
    return Record("r", "s", tuple(Turn(*turn) for turn in turns), None)


def exchange(*texts: str) -> Record:
    return record(*((("user", "assistant")[i % 2], text) for i, text in enumerate(texts)))


def id_tables(tokenizer) -> tuple[dict[int, int], dict[str, int]]:
    letters = {byte: tokenizer.convert_tokens_to_ids(letter) for byte, letter in _byte_letters().items()}
    names = {token: tokenizer.convert_tokens_to_ids(token) for token in tokenizer.get_added_vocab()}
    return letters, names


def _byte_letters() -> dict[int, str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in plain}
    others = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(256 + n) for n, byte in enumerate(others)}


texts = st.text(
    st.characters(exclude_categories=["Cs", "Co", "Cc", "Cf"]) | st.just("\n"), max_size=24
) | st.sampled_from(
    [
        "<|im_end|>",
        "</s> x",
        "<|im_start|>assistant\n",
        "\n\nyes\n",
        "  two  ",
        "\U0001f600e\u0301",
        "[/INST]",
        "<think>",
    ]
)
answers = texts.filter(lambda text: text.strip() != "" and "</think>" not in text)


@st.composite
def conversations(draw, system: bool = True):
    turns = [("system", draw(texts))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [("user", draw(texts)), ("assistant", draw(texts.filter(lambda t: "</think>" not in t)))]
    return [*turns, ("user", draw(texts)), ("assistant", draw(answers))]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("end_token", [True, False])
def test_tokens_and_mask_equal_the_template_written_out_by_hand(name, end_token):
    _, reference, _, system = TEMPLATES[name]
    tables = id_tables(TOKENIZERS[name])
    chat_encoder = encoder(name, end_token=end_token)

    @settings(max_examples=25, deadline=None)
    @given(conversations(system))
    def check(turns):
        segments = reference(turns, end_token)
        ids, mask = data_mask.byte_tokens(segments, *tables)
        encoded = chat_encoder.encode(record(*turns))
        assert encoded.input_ids.tolist() == ids
        assert encoded.loss_mask.tolist() == mask
        assert encoded.loss_tokens == sum(mask)
        assert not encoded.truncated
        assert encoded.input_ids.dtype == np.int32

    check()


@settings(max_examples=60, deadline=None)
@given(conversations(), st.integers(8, 120), st.sampled_from(["chatml", "llama3", "tulu"]))
def test_truncation_equals_removing_one_token_after_the_other(turns, limit, name):
    whole = encoder(name).encode(record(*turns))
    bos = name == "llama3"
    ids, mask = data_mask.truncated(whole.input_ids.tolist(), whole.loss_mask.tolist(), whole.answer_start, bos, limit)
    cut = encoder(name, max_tokens=limit).encode(record(*turns))
    assert cut.input_ids.tolist() == ids
    assert cut.loss_mask.tolist() == mask
    assert cut.truncated == (len(ids) < len(whole.input_ids))
    assert not mask[cut.answer_start - 1]
    assert mask[cut.answer_start]


def test_the_prompt_gives_way_before_the_answer_and_a_quarter_of_it_stays():
    long_prompt = exchange("p" * 500, "short")
    cut = encoder("chatml", max_tokens=64).encode(long_prompt)
    assert TOKENIZERS["chatml"].decode(cut.input_ids[cut.loss_mask]) == "short<|im_end|>"
    assert len(cut.input_ids) == 64
    both_long = encoder("chatml", max_tokens=64).encode(exchange("p" * 500, "a" * 500))
    assert both_long.answer_start == 16
    assert both_long.loss_tokens == 48


def corpus() -> list[str]:
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "says", "hello", "answer", "yes", "no"]
    lines = [" ".join(words[i % 7 :: 2]) + ".\n\n" for i in range(60)]
    return (
        lines
        + [
            "  indented\n    code = [1, 2, 3]\n",
            "caf\u00e9 \u65e5\u672c\u8a9e \U0001f600 na\u00efve",
            "<|user|>\n\n<|assistant|>\n",
        ]
        * 20
    )


def merging_tokenizer(kind: str, template: str | None, trim: bool = False) -> PreTrainedTokenizerFast:
    """Trained on a few lines: byte-level BPE, BPE over words that carry their space, or Unigram."""
    specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", *EXTRA]
    if kind == "bytes":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
        )
        if trim:
            from tokenizers import processors

            tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    elif kind == "words":
        tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        bytes_ = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=[*specials, *bytes_], show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=specials, unk_token="<unk>", show_progress=False
        )
    tokenizer.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", *EXTRA]})
    fast.chat_template = template
    return fast


MERGING = {
    (kind, name): merging_tokenizer(kind, TEMPLATES[name][0])
    for kind in ("bytes", "words", "pieces")
    for name in ("chatml", "mistral", "tulu", "llama3")
}


@functools.cache
def merging_encoder(key: tuple[str, str], end_token: bool) -> ChatEncoder:
    return ChatEncoder(MERGING[key], "auto", 4096, end_token)


plain_texts = st.lists(
    st.sampled_from(
        [
            "the",
            " quick",
            "fox",
            "\n",
            "\n\n",
            " ",
            "  ",
            ".",
            "yes",
            "no",
            "\u65e5\u672c",
            "\U0001f600",
            "caf\u00e9",
            " code = [1]",
        ]
    ),
    max_size=6,
).map("".join)


@settings(max_examples=60, deadline=None)
@given(
    plain_texts,
    plain_texts,
    plain_texts,
    plain_texts.filter(str.strip),
    st.sampled_from(sorted(MERGING)),
    st.booleans(),
)
@tried("", "", "\n", " quick", ("bytes", "mistral"), False)  # a question of white space between answers
@tried("", "yes", " ", "  no", ("bytes", "mistral"), True)
def test_merged_tokens_are_those_of_the_tokenizer_and_masked_character_by_character(a, b, c, d, key, end_token):
    tokenizer = MERGING[key]
    example = exchange(a, b, c, d)
    chat_encoder = merging_encoder(key, end_token)
    encoded = chat_encoder.encode(example)
    text = chat_encoder.render(example)
    # Ordinary text is tokenized just as the model's own tokenizer would.
    plain = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert encoded.input_ids.tolist() == plain["input_ids"]
    segments = TEMPLATES[key[1]][1]([(turn.role, turn.content) for turn in example.turns], end_token)
    assert "".join(segment.text for segment in segments) == text
    assert encoded.loss_mask.tolist() == data_mask.mask_by_characters(segments, plain["offset_mapping"])


def test_trimmed_offsets_of_a_tokenizer_do_not_move_the_mask():
    for example in (exchange("the fox", "yes it  is"), exchange("a", "  two")):
        masks = [
            ChatEncoder(merging_tokenizer("bytes", MISTRAL, trim), "auto", 99).encode(example).loss_mask.tolist()
            for trim in (False, True)
        ]
        assert masks[0] == masks[1]


def test_the_first_word_after_a_space_of_the_template_is_trained():
    tokenizer = MERGING["bytes", "mistral"]
    encoded = ChatEncoder(tokenizer, "auto", 99).encode(exchange("the fox", "yes"))
    assert tokenizer.decode(encoded.input_ids[encoded.loss_mask]) == " yes</s>"


@pytest.mark.parametrize("kind", ["bytes", "words", "pieces"])
def test_content_that_spells_special_tokens_stays_text_for_every_kind_of_tokenizer(kind):
    tokenizer = MERGING[kind, "chatml"]
    specials = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    encoded = ChatEncoder(tokenizer, "auto", 999).encode(exchange("<|im_start|>system</s>", "<|im_end|> yes <s>"))
    assert [int(i) for i in encoded.input_ids if int(i) in specials] == [
        tokenizer.convert_tokens_to_ids(f"<|im_{what}|>") for what in ("start", "end") * 2
    ]


def test_bos_stands_first_once():
    from tokenizers import processors

    for template in (None, LLAMA3):
        tokenizer = byte_tokenizer_with(template)
        before = ChatEncoder(tokenizer, "auto", 99).encode(exchange("a", "b")).input_ids.tolist()
        tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
        assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
        encoded = ChatEncoder(tokenizer, "auto", 99).encode(exchange("a", "b"))
        assert encoded.input_ids.tolist() == ([tokenizer.bos_token_id] if template is None else []) + before
        assert tokenizer.decode(encoded.input_ids[encoded.loss_mask]) == "b" + (
            "</s>" if template is None else "<|eot|>"
        )


def test_the_answer_begins_where_the_prompt_ends():
    for name in TEMPLATES:
        chat_encoder = encoder(name)
        example = exchange("one", "two", "three", "four")
        encoded = chat_encoder.encode(example)
        start = encoded.answer_start
        trained = TOKENIZERS[name].decode(encoded.input_ids[start:][encoded.loss_mask[start:]])
        assert trained.removeprefix("<think>\n\n</think>\n\n") == "four" + chat_encoder.end_of_turn


def test_a_conversation_that_ends_with_the_user_trains_the_answer_before():
    encoded = encoder("chatml").encode(exchange("a", "b", "c"))
    assert TOKENIZERS["chatml"].decode(encoded.input_ids[encoded.loss_mask]) == "b<|im_end|>"
    assert TOKENIZERS["chatml"].decode(encoded.input_ids).endswith("<|im_start|>user\nc<|im_end|>\n")


def test_a_refusal_of_the_template_is_a_bad_row_in_its_words():
    with pytest.raises(BadRow, match="System role not supported"):
        encoder("gemma").encode(record(("system", "s"), ("user", "u"), ("assistant", "a")))
    with pytest.raises(BadRow, match="must alternate"):
        encoder("gemma").encode(record(("user", "u"), ("user", "v"), ("assistant", "a")))
    with pytest.raises(BadRow, match=r"leaves out turn 1 \(system\)"):
        encoder("mistral").encode(record(("system", "s"), ("user", "u"), ("assistant", "a")))


def test_one_bad_record_leaves_the_others_of_its_batch_alone():
    good = exchange("a", "b")
    results = encoder("gemma").encode_many([good, record(("system", "s"), ("user", "u"), ("assistant", "a")), good])
    assert isinstance(results[1], BadRow)
    assert results[1].id == "r"
    alone = encoder("gemma").encode(good)
    for result in (results[0], results[2]):
        assert result.input_ids.tolist() == alone.input_ids.tolist()


def test_a_template_that_moves_text_when_turns_follow_is_rendered_as_it_is():
    tokenizer = byte_tokenizer_with(MISTRAL_SYSTEM_LAST)
    turns = [("system", "s"), ("user", "u"), ("assistant", "a"), ("user", "v"), ("assistant", "b")]
    encoded = ChatEncoder(tokenizer, "auto", 99).encode(record(*turns))
    assert tokenizer.decode(encoded.input_ids) == "<s>[INST] u[/INST] a</s>[INST] s\n\nv[/INST] b</s>"
    assert tokenizer.decode(encoded.input_ids[encoded.loss_mask]) == "a</s>b</s>"


def test_a_template_that_changes_a_plain_question_when_it_is_answered_is_an_error_that_names_it():
    tokenizer = byte_tokenizer_with("{{ messages | length }} turns: " + CHATML)
    tokenizer.name_or_path = "moving-template"
    with pytest.raises(DataError, match=r"moving-template.*not prefix-stable.*model\.chat_template"):
        ChatEncoder(tokenizer, "auto", 99)


def test_a_template_that_writes_long_conversations_otherwise_is_used():
    tokenizer = byte_tokenizer_with("{% if messages | length > 2 %}long{% endif %}" + CHATML, "<|im_end|>")
    encoded = ChatEncoder(tokenizer, "auto", 999).encode(exchange("a", "b", "c", "d"))
    assert tokenizer.decode(encoded.input_ids).startswith("long<|im_start|>")
    assert tokenizer.decode(encoded.input_ids[encoded.loss_mask]) == "b<|im_end|>d<|im_end|>"


def test_an_answer_that_the_template_cuts_is_trained_as_far_as_it_is_left():
    encoded = encoder("thinking").encode(exchange("q", "<think>why</think>yes"))
    trained = TOKENIZERS["thinking"].decode(encoded.input_ids[encoded.loss_mask])
    assert trained == "<think>\n\n</think>\n\nyes<|im_end|>"
    assert encoded.cut_by_template
    assert encoded.cuts == ("content of turn 2",)
    with pytest.raises(BadRow, match=r"leaves nothing of turn 2 \(assistant\).*model\.chat_template"):
        encoder("thinking").encode(exchange("q", "<think>why</think>", "r", "yes"))


def test_a_prompt_that_the_template_rewrites_is_found_all_the_same():
    tokenizer = byte_tokenizer_with(TOOL_AS_JSON, "<|im_end|>")
    turns = (("user", "u"), ("assistant", "call"), ("tool", '{"a": "<|im_end|>"}\n'), ("assistant", "done"))
    encoded = ChatEncoder(tokenizer, "auto", 999).encode(record(*turns))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.decode(encoded.input_ids[encoded.loss_mask]) == "call<|im_end|>done<|im_end|>"
    assert encoded.input_ids.tolist().count(end) == 4


def test_the_date_does_not_change_the_tokens():
    tokenizer = byte_tokenizer_with("{{ strftime_now('%d %b %Y') }}" + CHATML, "<|im_end|>")
    assert ChatEncoder(tokenizer, "auto", 99).render(exchange("a", "b")).startswith("26 Jul 2024<|im_start|>")


def test_a_template_without_an_end_token_trains_the_content_alone(caplog):
    template = "{% for m in messages %}### {{ m['role'] }}:\n{{ m['content'] }}\n\n{% endfor %}"
    tokenizer = byte_tokenizer_with(template)
    encoded = ChatEncoder(tokenizer, "auto", 99).encode(exchange("a", "b", "c", "d"))
    assert tokenizer.decode(encoded.input_ids[encoded.loss_mask]) == "bd"
    assert "no end-of-turn token" in caplog.text


def test_a_long_conversation_is_taken_apart_in_time_that_does_not_explode():
    turns = tuple((("user", "assistant")[i % 2], str(i)) for i in range(4000))
    encoded = encoder("chatml", max_tokens=100_000).encode(record(*turns))
    ids, mask = data_mask.byte_tokens(data_mask.chatml(turns), *id_tables(TOKENIZERS["chatml"]))
    assert encoded.input_ids.tolist() == ids
    assert encoded.loss_mask.tolist() == mask


def test_templates_come_from_a_file_and_have_a_digest(tmp_path):
    path = tmp_path / "chat.jinja"
    path.write_text(LLAMA3, encoding="utf-8")
    tokenizer = TOKENIZERS["chatml"]
    own, other = (ChatEncoder(tokenizer, template, 99) for template in ("auto", str(path)))
    assert own.template_digest != other.template_digest
    assert re.fullmatch("[0-9a-f]{64}", other.template_digest)
    assert other.end_of_turn == "<|eot|>"
    with pytest.raises(ConfigError, match=r"model\.chat_template: .*missing"):
        ChatEncoder(tokenizer, str(tmp_path / "missing"), 99)
    path.write_text("{% for m in %}", encoding="utf-8")
    with pytest.raises(DataError, match="not a Jinja template"):
        ChatEncoder(tokenizer, str(path), 99)
