"""A question from outside as a record: what a user types, or a conversation in any of the forms that data may have."""

from __future__ import annotations

import json
from dataclasses import dataclass

from influray.data.records import BadRow, Record, is_blank, parse_record
from influray.protocols import DataError


@dataclass(frozen=True, slots=True)
class Question:
    """One exchange whose influences are asked for: a prompt and its answer, or the bytes of a record (`messages`)."""

    prompt: str = ""
    answer: str = ""
    system: str = ""  # "" = the template's own, where it has one
    messages: bytes = b""  # JSON in one of the forms of a pool row, in place of the three


def question_record(question: Question) -> Record:
    """Return the record of a question, read as a row of a target file would be.

    Raises:
        DataError: the prompt or the answer is blank, `messages` stands beside them, or the record cannot be used.
    """
    raw = question.messages
    if not raw:
        if is_blank(question.prompt):
            raise DataError("question: it is empty; ask with the prompt that the answer belongs to")
        if is_blank(question.answer):
            raise DataError("answer: there is none; influence is that on the answer, so give the one you want")
        turns = [("system", question.system)] if question.system else []
        turns += [("user", question.prompt), ("assistant", question.answer)]
        # Escaped, so that a lone surrogate is found by the same check as in a file.
        raw = json.dumps({"messages": [{"role": role, "content": text} for role, text in turns]}).encode()
    elif question.prompt or question.answer or question.system:
        raise DataError("messages: it stands in place of prompt, answer and system; give one or the other")
    try:
        return parse_record(raw)
    except BadRow as bad:
        raise DataError(f"{'messages' if question.messages else 'question'}: {bad.reason}") from None
