"""Record -> tokens and the tokens that are trained: every assistant turn's content and its end-of-turn token.

The text is encoded once, as a whole. The spans of the contents are known by construction (rendering.py), those of
the tokens by the tokenizer's offsets, so the mask needs no second tokenization that might cut differently.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from influray.config import Config
from influray.data.records import BadRow, Record, Turn, is_blank
from influray.data.rendering import TULU, ChatTemplate, assemble
from influray.data.vocabulary import PrivateVocabulary, refuse_private_names, tokenizer_name
from influray.protocols import ConfigError, DataError

log = logging.getLogger(__name__)

PROMPT_SHARE = 4  # of an over-long example at least max_tokens // 4 tokens of prompt are kept


@dataclass(frozen=True, slots=True)
class Encoded:
    """One record as the model sees it.

    `loss_spans` holds the trained tokens as flat (start, stop) pairs, ascending, without overlap;
    `answer_start` is the first trained token of the last assistant turn: what stands before it is the prompt.
    """

    input_ids: np.ndarray  # int32
    loss_spans: np.ndarray  # int32
    answer_start: int
    truncated: bool

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
    # Characters of each trained turn: content from, content to, end of turn to (= content to where it has none).
    turns: list[tuple[int, int, int]]


class ChatEncoder:
    """Encodes records with a chat template.

    `template` is the path of a Jinja file, or "auto": the tokenizer's own, else a Tulu-style one. `end_token` says
    whether the end-of-turn token is trained.

    Decided where a token is not wholly in or out of a content: one that begins in it is trained; one that begins
    before it is trained if what it holds of the template is white space (" Yes" after "[/INST] " is what the model
    has to say) and it is no special token. From the content to its end token all is trained, since the model must
    write it to get there. A blank turn in the middle trains nothing, not even its end token. BOS stands first once:
    where the tokenizer puts it before plain text, or where the template writes it.

    Raises:
        ConfigError: the template file cannot be read.
        DataError: no fast tokenizer, a template that is no Jinja, fails on a plain exchange or is not prefix-stable.
    """

    def __init__(self, tokenizer: Any, template: str, max_tokens: int, end_token: bool = True) -> None:
        self.max_tokens = max_tokens
        self.end_token = end_token
        self._template = ChatTemplate(tokenizer, *_template_source(tokenizer, template))
        tail = self._after_an_answer()
        self._vocabulary = PrivateVocabulary(tokenizer, tail)
        special = self._vocabulary.first_special(tail)
        # What the template writes after an answer, up to and with its first special token.
        self.end_of_turn = tail[: special.end()] if special else ""
        if not special:
            log.warning("%s writes no end-of-turn token: a model trained with it does not learn to stop", self.name)

    @property
    def name(self) -> str:
        """What messages call the template."""
        return self._template.name

    @property
    def template_digest(self) -> str:
        """The sha256 of the template's source."""
        return hashlib.sha256(self._template.source.encode("utf-8", "surrogatepass")).hexdigest()

    def render(self, record: Record) -> str:
        """Return the text of a record, as the template writes it. Raises BadRow where it refuses."""
        return self._template.render(record.turns)

    def encode(self, record: Record) -> Encoded:
        """Return a record's tokens. Raises BadRow naming why it cannot be trained on, DataError as the class does."""
        encoded = self.encode_many([record])[0]
        if isinstance(encoded, BadRow):
            raise encoded
        return encoded

    def encode_many(self, records: Sequence[Record]) -> list[Encoded | BadRow]:
        """Return what `encode` returns or raises for each record; on several cores the records share them."""
        results: list[Encoded | BadRow | _Prepared] = []
        for record in records:
            try:
                results.append(self._prepare(record))
            except BadRow as bad:
                results.append(BadRow(bad.reason, record.id))
        encodings = iter(self._vocabulary.encode([r.text for r in results if isinstance(r, _Prepared)]))
        done: list[Encoded | BadRow] = []
        for record, result in zip(records, results, strict=True):
            if isinstance(result, _Prepared):
                try:
                    result = self._finish(result, next(encodings))
                except BadRow as bad:
                    result = BadRow(bad.reason, record.id)
            done.append(result)
        return done

    def prompt_ids(self, record: Record) -> np.ndarray:
        """Return the tokens, int32, from which greedy decoding writes the last answer.

        They are the tokens of `encode` before that answer, so that decoding from them and teacher forcing over the
        answer see the same context, whatever a tokenizer merges at the boundary.
        """
        encoded = self.encode(record)
        return encoded.input_ids[: encoded.answer_start]

    def _after_an_answer(self) -> str:
        try:
            return self._template.skeleton((Turn("user", ""), Turn("assistant", ""))).pieces[-1]
        except BadRow as bad:
            raise DataError(f"{self.name} fails on a plain exchange of two turns: {bad.reason}") from None

    def _prepare(self, record: Record) -> _Prepared:
        skeleton = self._template.skeleton(record.turns)
        contents = self._template.contents(record.turns, skeleton)
        translate = self._vocabulary.translate
        end_length = len(translate(self.end_of_turn))
        pieces = [translate(piece) for piece in skeleton.pieces]
        position = 0
        trained = []
        for i, (turn, content) in enumerate(zip(record.turns, contents, strict=True)):
            refuse_private_names(content)
            start = position + len(pieces[i])
            position = start + len(content)
            if turn.role == "assistant" and not is_blank(content):
                ends = self.end_token and skeleton.pieces[i + 1].startswith(self.end_of_turn)
                trained.append((start, position, position + end_length if ends else position))
        return _Prepared(assemble(pieces, contents), trained)

    def _finish(self, prepared: _Prepared, encoding: tokenizers.Encoding) -> Encoded:
        vocabulary = self._vocabulary
        ids, offsets = encoding.ids, encoding.offsets
        adds_bos = vocabulary.adds_bos and ids[:1] != [vocabulary.bos_id]
        shift = int(adds_bos)
        spans = []
        start = stop = 0
        for turn in prepared.turns:
            last = spans[-1] - shift if spans else 0
            start, stop = self._trained_tokens(turn, prepared.text, ids, offsets)
            start = max(start, last)  # one token may end an answer and begin the next
            if start < stop:
                spans += (start + shift, stop + shift)
        if start >= stop:
            raise BadRow("no answer token: the tokenizer leaves nothing of the last answer")
        if adds_bos:
            ids = [vocabulary.bos_id, *ids]
        has_bos = vocabulary.bos_id is not None and ids[0] == vocabulary.bos_id
        return _truncated(
            np.array(ids, dtype=np.int32), np.array(spans, dtype=np.int32), start + shift, has_bos, self.max_tokens
        )

    def _trained_tokens(
        self, turn: tuple[int, int, int], text: str, ids: list[int], offsets: list[tuple[int, int]]
    ) -> tuple[int, int]:
        begin, end, turn_end = turn
        special = self._vocabulary.special_ids
        start = bisect_left(offsets, (begin,))
        while start > 0 and offsets[start - 1][1] > begin and self._belongs(text, offsets[start - 1][0], begin):
            if ids[start - 1] in special:
                break
            start -= 1
        stop = bisect_left(offsets, (end,))
        while stop > start and ids[stop - 1] in special:  # an end token that took in white space before it
            stop -= 1
        if stop == start or turn_end == end:
            return start, stop
        return start, max(stop, bisect_left(offsets, (turn_end,)))

    @staticmethod
    def _belongs(text: str, token_begin: int, content_begin: int) -> bool:
        return not text[token_begin:content_begin].strip()


def split_encoder(config: Config, tokenizer: Any, split: str) -> ChatEncoder:
    """Return what encodes the records of a split of a run. Raises as `ChatEncoder`."""
    end_token = config.data.target_end_token if split == "target" else True
    return ChatEncoder(tokenizer, config.model.chat_template, config.data.max_tokens, end_token)


def _template_source(tokenizer: Any, template: str) -> tuple[str, str]:
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
        return tokenizer.get_chat_template(), f"the chat template of {name}"
    except ValueError as error:
        raise DataError(f"the chat template of {name}: {error}; give model.chat_template a file") from error


def _truncated(ids: np.ndarray, spans: np.ndarray, answer: int, has_bos: bool, max_tokens: int) -> Encoded:
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
    return Encoded(tokens, moved.reshape(-1).astype(np.int32), answer - shift, len(tokens) < len(ids))
