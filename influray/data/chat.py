"""Record -> tokens and the tokens that are trained: what every assistant turn writes and its end-of-turn token.

The text is the template's rendering of the record (rendering.py), encoded once, as a whole. Which characters are
answers is read off it (answers.py, skeletons.py), which tokens they are tells the tokenizer by its offsets, so the
mask needs no second tokenization that might cut differently.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from influray.config import Config
from influray.data.answers import Answer, AnswerReader
from influray.data.marks import said
from influray.data.records import BadRow, Record
from influray.data.rendering import TULU, ChatTemplate
from influray.data.skeletons import Skeletons
from influray.data.vocabulary import PrivateVocabulary, refuse_private_names, tokenizer_name
from influray.protocols import ConfigError, DataError

log = logging.getLogger(__name__)

PROMPT_SHARE = 4  # of an over-long example at least max_tokens // 4 tokens of prompt are kept


@dataclass(frozen=True, slots=True)
class Encoded:
    """One record as the model sees it.

    `loss_spans` holds the trained tokens as flat (start, stop) pairs, ascending, without overlap;
    `answer_start` is the first trained token of the last turn that is trained: what stands before it is the prompt.
    `cut_by_template` says that the template leaves out or rewrites a part of an answer, or leaves out the tools, and
    `cuts` what.
    """

    input_ids: np.ndarray  # int32
    loss_spans: np.ndarray  # int32
    answer_start: int
    truncated: bool
    cuts: tuple[str, ...] = ()

    @property
    def cut_by_template(self) -> bool:
        return bool(self.cuts)

    @property
    def loss_mask(self) -> np.ndarray:
        """True at each trained token; never at position 0, which nothing predicts."""
        return mask_of(self.loss_spans, len(self.input_ids))

    @property
    def loss_tokens(self) -> int:
        return int((self.loss_spans[1::2] - self.loss_spans[::2]).sum())


def mask_of(loss_spans: np.ndarray, tokens: int) -> np.ndarray:
    """Return the bool mask [tokens] of flat (start, stop) pairs."""
    mask = np.zeros(tokens, dtype=bool)
    for start, stop in loss_spans.reshape(-1, 2).tolist():
        mask[start:stop] = True
    return mask


@dataclass(frozen=True, slots=True)
class _Prepared:
    text: str
    answers: list[Answer]  # those that are trained
    cuts: tuple[str, ...]


class ChatEncoder:
    """Encodes records with a chat template.

    `template` is the path of a Jinja file, or "auto": the tokenizer's own, else a Tulu-style one. `end_token` says
    whether the end-of-turn token is trained.

    Trained is what the template writes for an assistant turn after its header: reasoning, content, calls, up to its
    end-of-turn token; or what it marks as generated, where it does. A turn that says nothing trains nothing, not even
    its end token, and so does one that the record takes out of the loss.

    Decided where a token is not wholly in or out of an answer: one that begins in it is trained; one that begins
    before it is trained if what it holds of the template is white space (" Yes" after "[/INST] " is what the model
    has to say) and it is no special token. BOS stands where the template writes it; where the tokenizer has no
    template of its own, also where the tokenizer puts it before plain text.

    Raises:
        ConfigError: the template file cannot be read.
        DataError: no fast tokenizer, a template that is no Jinja, fails on a plain exchange or is not prefix-stable.
    """

    def __init__(self, tokenizer: Any, template: str, max_tokens: int, end_token: bool = True) -> None:
        self.max_tokens = max_tokens
        self.end_token = end_token
        self._template = ChatTemplate(tokenizer, *_template_source(tokenizer, template))
        self._vocabulary = PrivateVocabulary(tokenizer, self._template.after_an_answer)
        self._adds_bos = self._vocabulary.adds_bos and self._template.source is TULU
        self._reader = AnswerReader(self._template, self._vocabulary)
        self._skeletons = Skeletons(self._reader)
        self.end_of_turn = self._vocabulary.plain(self._reader.habits.end)
        if not self.end_of_turn:
            log.warning("%s writes no end-of-turn token: a model trained with it does not learn to stop", self.name)

    @property
    def name(self) -> str:
        """What messages call the template."""
        return self._template.name

    @property
    def template_digest(self) -> str:
        """The sha256 of the template's source, with that of its form for tools where it has one."""
        sources = dict.fromkeys((self._template.source, self._template.tool_source))
        return hashlib.sha256("\0".join(sources).encode("utf-8", "surrogatepass")).hexdigest()

    def render(self, record: Record, prompt: bool = False) -> str:
        """Return the text of a record, with `prompt` as one that asks for the next answer. Raises BadRow: refused."""
        return self._template.render(self._template.conversation(record), prompt)

    def encode(self, record: Record) -> Encoded:
        """Return a record's tokens. Raises BadRow naming why it cannot be trained on, DataError as the class does."""
        encoded = self.encode_many([record])[0]
        if isinstance(encoded, BadRow):
            raise encoded
        return encoded

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | BadRow]:
        """Return what `encode` returns or raises for each record; on several cores the records share them."""
        prepared = [_attempt(record, self._prepare, record) for record in records]
        texts = [found.text for found in prepared if isinstance(found, _Prepared)]
        encodings = iter(self._vocabulary.encode(texts))
        return [
            _attempt(record, self._finish, found, next(encodings)) if isinstance(found, _Prepared) else found
            for record, found in zip(records, prepared, strict=True)
        ]

    def _prepare(self, record: Record) -> _Prepared:
        conversation = self._template.conversation(record)
        real = self._template.render(conversation)
        refuse_private_names(real)
        reading = self._skeletons.read(record, real) or self._reader.read(conversation, real)
        for turn in reading.gone:
            if record.turns[turn].trained:
                keys = " and ".join(dict.fromkeys(str(path[0]) for path, _ in said(conversation.messages[turn])))
                raise BadRow(
                    f"the chat template leaves nothing of turn {turn + 1} (assistant): it does not write its {keys}; "
                    "give model.chat_template a file that does"
                )
        trained = [answer for answer in reading.answers if record.turns[answer.turn].trained]
        if not trained:
            raise BadRow(_nothing_trained(record))
        return _Prepared(reading.text, trained, reading.cut)

    def _finish(self, prepared: _Prepared, encoding: tokenizers.Encoding) -> Encoded:
        vocabulary = self._vocabulary
        ids, offsets = encoding.ids, encoding.offsets
        adds_bos = self._adds_bos and ids[:1] != [vocabulary.bos_id]
        shift = int(adds_bos)
        last_turn = prepared.answers[-1].turn
        spans: list[int] = []
        answer = None
        for found in prepared.answers:
            start, stop = self._trained_tokens(found, prepared.text, ids, offsets)
            start = max(start, spans[-1] - shift if spans else 0)  # one token may end an answer and begin the next
            if start < stop:
                spans += (start + shift, stop + shift)
                if found.turn == last_turn and answer is None:
                    answer = start + shift
        if answer is None:
            raise BadRow("no answer token: the tokenizer leaves nothing of the last answer")
        if adds_bos:
            ids = [vocabulary.bos_id, *ids]
        has_bos = vocabulary.bos_id is not None and ids[0] == vocabulary.bos_id
        return _truncated(
            np.array(ids, dtype=np.int32),
            np.array(spans, dtype=np.int32),
            answer,
            has_bos,
            self.max_tokens,
            prepared.cuts,
        )

    def _trained_tokens(
        self, answer: Answer, text: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[int, int]:
        special = self._vocabulary.special_ids
        start = bisect_left(offsets, (answer.start,))
        while start > 0 and offsets[start - 1][1] > answer.start:
            if ids[start - 1] in special or text[offsets[start - 1][0] : answer.start].strip():
                break
            start -= 1
        stop = bisect_left(offsets, (answer.stop,))
        # An end token that took in white space before it.
        while stop > start and ids[stop - 1] in special and offsets[stop - 1][1] > answer.stop:
            stop -= 1
        if answer.end == answer.stop or not self.end_token or (stop == start and answer.stop > answer.start):
            return start, stop
        return start, max(stop, bisect_left(offsets, (answer.end,)))


def split_encoder(config: Config, tokenizer: Any, split: str) -> ChatEncoder:
    """Return what encodes the records of a split of a run. Raises as `ChatEncoder`."""
    end_token = config.data.target_end_token if split == "target" else True
    return ChatEncoder(tokenizer, config.model.chat_template, config.data.max_tokens, end_token)


def _attempt(record: Record, function: Callable[..., Any], *given: Any) -> Any:
    """Return what a function does, or the BadRow that it raises, with the record's id."""
    try:
        return function(*given)
    except BadRow as bad:
        return BadRow(bad.reason, record.id)


def _nothing_trained(record: Record) -> str:
    if any(turn.role == "assistant" and not turn.trained for turn in record.turns):
        return "no turn to train: the record takes every answer that says something out of the loss"
    return "no answer token: the chat template marks nothing of an answer as generated"


def _template_source(tokenizer: Any, template: str) -> tuple[str, str] | tuple[str, str, str]:
    name = tokenizer_name(tokenizer)
    if template != "auto":
        try:
            return Path(template).read_text(encoding="utf-8"), f"model.chat_template {template}"
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"model.chat_template: {template}: the template file cannot be read: {error}; or write auto"
            ) from error
    if not getattr(tokenizer, "chat_template", None):
        if not tokenizer.eos_token:
            raise DataError(
                f"model.base: the tokenizer of {name} has no eos token to end a turn of the default template"
            )
        return TULU, f"the default template with the tokenizer of {name}"
    try:
        with_tools = tokenizer.get_chat_template(None, tools=[{}])
        return tokenizer.get_chat_template(), f"the chat template of {name}", with_tools
    except ValueError as error:
        raise DataError(f"the chat template of {name}: {error}; give model.chat_template a file") from error


def _truncated(
    ids: np.ndarray, spans: np.ndarray, answer: int, has_bos: bool, max_tokens: int, cuts: tuple[str, ...]
) -> Encoded:
    """Cut to `max_tokens`: what stands after the last trained token, then old prompt, then the end of the answer."""
    first = int(has_bos)
    head = ids[:first]
    start, stop = first, len(ids)
    if stop > max_tokens:
        # A causal model's loss cannot depend on what stands after the last trained token.
        stop = int(spans[-1])
        prompt, room = answer - first, max_tokens - first
        kept = min(prompt, max(room - (stop - answer), max_tokens // PROMPT_SHARE))
        start, stop = answer - kept, min(stop, answer + room - kept)
    shift = start - first
    moved = np.clip(spans - shift, max(first, 1), stop - shift).reshape(-1, 2)
    moved = moved[moved[:, 0] < moved[:, 1]]
    if not len(moved):
        raise BadRow("no answer token is left to train on")
    tokens = np.concatenate([head, ids[start:stop]])
    return Encoded(tokens, moved.reshape(-1).astype(np.int32), answer - shift, len(tokens) < len(ids), cuts)
