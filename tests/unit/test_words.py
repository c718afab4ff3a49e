"""How text is cut into words: English as it always was, writing without spaces by character."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from influray.data.words import spaced_words, words_and_points
from influray.evaluation.copies import Text, contaminated, normalised


@given(st.text(st.characters(exclude_characters="\u200c\u200d", max_codepoint=0xDFF), max_size=40))
def test_scripts_with_spaces_are_cut_as_before(text):
    assert words_and_points(text) == re.findall(r"\w+|[^\w\s]+", text)
    assert spaced_words(text) == text.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("去昆明的GPT-4车。", ["去", "昆", "明", "的", "GPT", "-", "4", "车", "。"]),
        ("カナと東京tower", ["カ", "ナ", "と", "東", "京", "tower"]),
        ("ที่นี่ ok", ["ที่", "นี่", "ok"]),
        ("ລາວ", ["ລ", "າ", "ວ"]),
        ("ភាសា", ["ភា", "សា"]),
        ("မာစာ", ["မာ", "စာ"]),
        ("か\u3099", ["か\u3099"]),
        ("\U00020000\U00020001", ["\U00020000", "\U00020001"]),
        ("한국어 단어", ["한국어", "단어"]),
    ],
)
def test_writing_without_spaces_is_cut_by_character_with_its_marks(text, words):
    assert words_and_points(text) == words


def test_a_reworded_question_without_spaces_is_found():
    question = "去昆明的火车几点开车票还能买到吗"
    held = {"test": [Text(0, normalised(question), normalised("早上5点"))]}
    pool = [
        Text(4, normalised(f"请问一下{question}谢谢"), normalised("不知道")),
        Text(5, normalised("院子里种了3棵苹果树每年收多少"), normalised("9斤")),
    ]
    assert [(one.row, one.kind) for one in contaminated(pool, held)] == [(4, "n-grams")]
