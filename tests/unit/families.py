"""Kinds of conversations, and a tokenizer that has whatever special tokens a chat template spells."""

from __future__ import annotations

import re
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from influray.data.records import Record, Turn

WORDS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
_SPELLED = re.compile(
    r"<\|[^|<>\s]+\|>|<\uff5c[^\uff5c<>]+\uff5c>|<\|[\w\"]+>|<[\w\"]+\|>|\[/?[A-Z_]{3,}\]|"
    r"<(?:start_of_turn|end_of_turn|start_of_image|end_of_utterance)>"
)
_ENDS = [
    "<|im_end|>",
    "<|eot_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<｜end▁of▁sentence｜>",
    "<|return|>",
    "<|END_OF_TURN_TOKEN|>",
    "<|end|>",
    "<end_of_utterance>",
    "<|eot|>",
]
QUESTION = Turn("user", "When is high water in Brest?")
ANSWER, LATER, THOUGHT = "At 06:40.", "At 07:25, I think.", "Brest lies in Brittany."
TOOLS = (
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "Tell the time of high water",
            "parameters": {
                "type": "object",
                "properties": {"port": {"type": "string", "description": "A harbour"}},
                "required": ["port"],
            },
        },
    },
)


def called(arguments: Any, text: str | None = None) -> Turn:
    call = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "tide", "arguments": arguments}}
    return Turn("assistant", text or "", {"tool_calls": [call], **({"content": None} if text is None else {})})


RESULT = Turn("tool", '{"high": "06:40"}', {"tool_call_id": "a1b2c3d4e", "name": "tide"})
# name -> (turns, tools, what must stand in the trained text unless the row says that it is cut)
KINDS: dict[str, tuple[tuple[Turn, ...], tuple[Any, ...], tuple[str, ...]]] = {
    "plain": ((QUESTION, Turn("assistant", ANSWER)), (), (ANSWER,)),
    "multi-turn": (
        (QUESTION, Turn("assistant", ANSWER), Turn("user", "And tomorrow?"), Turn("assistant", LATER)),
        (),
        (ANSWER, LATER),
    ),
    "system": ((Turn("system", "You know the sea."), QUESTION, Turn("assistant", ANSWER)), (), (ANSWER,)),
    "empty system": ((Turn("system", ""), QUESTION, Turn("assistant", ANSWER)), (), (ANSWER,)),
    "reasoning in content": (
        (QUESTION, Turn("assistant", f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}")),
        (),
        (THOUGHT, ANSWER),
    ),
    "reasoning_content": (
        (QUESTION, Turn("assistant", ANSWER, {"reasoning_content": THOUGHT})),
        (),
        (THOUGHT, ANSWER),
    ),
    "call, object": ((QUESTION, called({"port": "Brest"})), TOOLS, ("tide", "Brest")),
    "call, string": ((QUESTION, called('{"port": "Brest"}')), TOOLS, ("tide", "Brest")),
    "tool answer": ((QUESTION, called({"port": "Brest"}), RESULT, Turn("assistant", ANSWER)), TOOLS, ("tide", ANSWER)),
    "two answers": ((QUESTION, Turn("assistant", ANSWER), Turn("assistant", LATER)), (), (ANSWER, LATER)),
}


def record(kind: str) -> Record:
    turns, tools, _ = KINDS[kind]
    return Record("r", "s", turns, None, tools)


def family_tokenizer(template: str, eos: str | None = None) -> PreTrainedTokenizerFast:
    """One token a byte, the special tokens that the template spells, and the words of reasoning and calls as tokens."""
    found = sorted(set(_SPELLED.findall(template)) - {"<pad>", "<s>", "</s>"})
    eos = eos or next((token for token in _ENDS if token in found), "</s>")
    specials = list(dict.fromkeys(["<pad>", "<s>", "</s>", eos, *found]))
    vocabulary = [
        *specials,
        *(word for word in WORDS if word not in specials),
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
    ]
    inner = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token=eos, pad_token="<pad>")
    rest = [token for token in specials if token not in ("<s>", "<pad>", eos)]
    tokenizer.add_special_tokens({"additional_special_tokens": rest})
    tokenizer.add_tokens([AddedToken(word, special=False, normalized=False) for word in WORDS if word not in specials])
    tokenizer.chat_template = template
    return tokenizer
