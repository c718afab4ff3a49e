"""A tokenizer in which no text can spell a special token.

Whoever writes "<|im_end|>" into a message must not end a turn with it. The special tokens of a copy of the
tokenizer are therefore renamed to private names, which only the template's own text is translated to: one encoding
of the whole text then gives the template its tokens and leaves the content text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import tokenizers

from influray.data.records import BadRow
from influray.protocols import DataError

# Of plane 15, for private use: no normalizer changes them, and no text of the world holds them by right.
_OPEN, _CLOSE = "\U000f1a5f", "\U000f1a60"
PRIVATE = re.compile(f"{_OPEN}[0-9a-f]+{_CLOSE}")  # a special token in translated text
_KEPT = tuple(chr(code) for code in range(0xF1A5E, 0xF1A66))  # these, and those of marks


class PrivateVocabulary:
    """A fast tokenizer with private special tokens.

    `specials` maps the text of each special token to its id. Special are the tokens that the tokenizer flags as such
    or names (bos, eos, ...), and any added token in `after_an_answer`: what the template ends a turn with. Offsets
    are those of characters, and untrimmed: a leading space belongs to its token.
    """

    def __init__(self, tokenizer: Any, after_an_answer: str = "") -> None:
        name = tokenizer_name(tokenizer)
        if not getattr(tokenizer, "is_fast", False):
            raise DataError(f"model.base: the tokenizer of {name} has no fast form, and only those give offsets")
        spec = json.loads(tokenizer.backend_tokenizer.to_str())
        named = set(tokenizer.all_special_tokens)
        # A special token of one character is a letter of the alphabet that content is spelled with; it stays.
        self.specials: dict[str, int] = {
            token["content"]: token["id"]
            for token in spec["added_tokens"]
            if (token["special"] or token["content"] in named or token["content"] in after_an_answer)
            and len(token["content"]) > 1
        }
        self._alias = {text: f"{_OPEN}{index:x}{_CLOSE}" for text, index in self.specials.items()}
        self._texts = {alias: text for text, alias in self._alias.items()}
        longest_first = sorted(map(re.escape, self.specials), key=len, reverse=True)
        self._pattern = re.compile("|".join(longest_first) or "(?!)")
        self._backend = tokenizers.Tokenizer.from_str(json.dumps(_renamed(spec, self._alias)))
        for text, index in self.specials.items():
            if self._backend.encode(self._alias[text], add_special_tokens=False).ids != [index]:
                raise DataError(f"model.base: the tokenizer of {name} does not keep {text!r} as one token")
        self.special_ids = frozenset(self.specials.values())
        start = tokenizer("a")["input_ids"][:1]
        self.bos_id: int | None = tokenizer.bos_token_id  # as it may stand first in a rendering
        self.adds_bos = self.bos_id is not None and start == [self.bos_id]  # the tokenizer's habit with plain text

    def translate(self, template_text: str) -> str:
        """Return text of a template with its special tokens under their private names."""
        return self._pattern.sub(lambda match: self._alias[match[0]], template_text)

    def plain(self, text: str) -> str:
        """Return a text with its special tokens under their own names again."""
        return PRIVATE.sub(lambda match: self._texts[match[0]], text)

    def first_special(self, text: str, start: int = 0) -> re.Match[str] | None:
        """Return the first special token that a text spells, from a character on."""
        return self._pattern.search(text, start)

    def encode(self, texts: Sequence[str]) -> list[tokenizers.Encoding]:
        """Return one encoding per text; nothing is added, nothing truncated."""
        return self._backend.encode_batch(list(texts), add_special_tokens=False)


def tokenizer_name(tokenizer: Any) -> str:
    """Return what messages call a tokenizer."""
    return str(getattr(tokenizer, "name_or_path", "") or type(tokenizer).__name__)


def refuse_private_names(text: str) -> None:
    """Raise BadRow for content that holds what private names and marks are made of."""
    for character in _KEPT:
        if character in text:
            raise BadRow(f"the character U+{ord(character):X} is kept for special tokens and cannot stand in content")


def _renamed(spec: dict[str, Any], alias: dict[str, str]) -> dict[str, Any]:
    model = dict(spec["model"])
    vocabulary = model.get("vocab")
    if isinstance(vocabulary, dict):
        model["vocab"] = {alias.get(token, token): index for token, index in vocabulary.items()}
    elif isinstance(vocabulary, list):
        model["vocab"] = [[alias.get(token, token), score] for token, score in vocabulary]
    if model.get("unk_token") in alias:
        model["unk_token"] = alias[model["unk_token"]]
    if model.get("merges"):
        pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
        model["merges"] = [list(pair) for pair in pairs if not alias.keys() & {*pair, "".join(pair)}]
    added = [{**token, "content": alias.get(token["content"], token["content"])} for token in spec["added_tokens"]]
    # Without a post-processor nothing trims the offsets.
    return {**spec, "model": model, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
