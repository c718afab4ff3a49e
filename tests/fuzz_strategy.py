"""Odd rows and configs, for jobs/fuzz.py and its short form in the suite."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from tests.records_strategy import written

ROW_KEYS = [
    "id",
    "source",
    "answer",
    "messages",
    "conversations",
    "conversation",
    "prompt",
    "completion",
    "instruction",
    "input",
    "output",
    "query",
    "response",
    "question",
    "solution",
    "system",
    "system_prompt",
    "history",
    "tools",
    "functions",
    "chat_template_kwargs",
    "chosen",
    "rejected",
    "images",
    "label",
    "mask_history",
    "reasoning_content",
    "thinking",
    "context",
    "text",
]
MESSAGE_KEYS = [
    "role",
    "from",
    "speaker",
    "content",
    "value",
    "text",
    "tool_calls",
    "function_call",
    "name",
    "tool_call_id",
    "weight",
    "train",
    "loss",
    "loss_scale",
    "mask",
    "train_detail",
    "reasoning_content",
    "images",
    "human",
    "assistant",
    "system",
    "type",
    "function",
    "arguments",
]
WORDS = ("user", "assistant", "system", "tool", "gpt", "human", "function_call", "observation", "text", "tool_use", "")
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(10**400), 2**63, 1e308, -0.0])
leaves = st.none() | st.booleans() | numbers | st.sampled_from(WORDS) | st.text(max_size=6)
trees = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(MESSAGE_KEYS) | st.text(max_size=4), inner, max_size=4)
        | inner.map(lambda tree: json.dumps(tree))
    ),
    max_leaves=14,
)


@st.composite
def _changed(draw: st.DrawFn) -> Any:
    """Draw a good row of which a few values, at any depth, are replaced."""
    tree = json.loads(draw(written()).raw)
    for _ in range(draw(st.integers(1, 3))):
        node: Any = tree
        while isinstance(node, dict | list) and node:
            key = draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
            if draw(st.booleans()) or not isinstance(node[key], dict | list):
                node[key] = draw(trees)
                break
            node = node[key]
    return tree


def rows() -> st.SearchStrategy[bytes]:
    """Return rows: bytes, odd trees under the keys that are read, and good rows with parts replaced."""
    odd = st.dictionaries(st.sampled_from(ROW_KEYS), trees, max_size=6)
    return (odd | _changed()).map(lambda tree: json.dumps(tree).encode()) | st.binary(max_size=80)


_DATA = ["root", "pool", "targets", "columns", "max_tokens", "max_bad_fraction", "target_end_token"]
_ENTRY = ["files", "columns", "source", "limit", "ids", "weight_of_ids", "test", "test_limit", "expected_sources"]
_COLUMNS = [
    "messages",
    "prompt",
    "completion",
    "instruction",
    "output",
    "id",
    "source",
    "role",
    "content",
    "train",
    "roles",
    "ignore",
    "user",
]
_values = leaves | st.sampled_from(["scoped", "global", "a.jsonl", "x", "hf://a/b"]) | st.lists(leaves, max_size=2)
_columns = st.dictionaries(
    st.sampled_from(_COLUMNS), _values | st.dictionaries(st.sampled_from(WORDS), _values), max_size=3
)
_entries = st.dictionaries(st.sampled_from(_ENTRY), _values | _columns, max_size=4)
_many = _entries | _values | st.lists(_entries | _values, max_size=3)


def configs() -> st.SearchStrategy[dict[str, Any]]:
    """Return trees of a config whose section `data` is odd."""
    sections = st.dictionaries(
        st.sampled_from(_DATA), _many | _columns | st.dictionaries(st.text("tu", max_size=2), _many), max_size=5
    )
    good = {"pool": ["a.jsonl"], "targets": {"t": "t.jsonl"}}
    selectors = [{"name": "b", "method": "bids", "budget": 1}]
    return sections.map(lambda data: {"model": {"base": "x"}, "selectors": selectors, "data": {**good, **data}})
