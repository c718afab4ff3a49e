"""N-gram features: counts done by hand, DSIR's own buckets, and what of a record is read."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest

from influray.config import DataConfig
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.features.ngram import NgramFeaturizer
from influray.protocols import ArtifactMismatch, ConfigError, TextExample
from influray.registry import make
from influray.store.artifact import ShardStore
from influray.store.datastore import Datastore, counts_of, feature_table
from tests.tiny import byte_tokenizer, pool_rows, write_jsonl


def bucket(gram: str, buckets: int = 10_000) -> int:
    """As p-lambda/dsir has it."""
    return int(hashlib.sha256(gram.encode("utf-8")).hexdigest(), 16) % buckets


def text(row: int, words: str) -> TextExample:
    return TextExample(row, words, 10 * row, row)


def by_bucket(block) -> list[dict[int, int]]:
    found = block.counts
    cut = zip(found.offset[:-1], found.offset[1:], strict=True)
    return [dict(zip(found.bucket[a:b].tolist(), found.count[a:b].tolist(), strict=True)) for a, b in cut]


def test_words_and_pairs_are_counted_by_hand():
    (found,) = by_bucket(NgramFeaturizer().compute([text(0, "The cat -- the CAT!")]))
    grams = ["the", "the", "cat", "cat", "--", "!", "the cat", "the cat", "cat --", "-- the", "cat !"]
    assert found == {bucket(g): grams.count(g) for g in grams}


@pytest.mark.parametrize("n", [1, 2, 3])
def test_every_n_gram_is_counted_once_and_collisions_add_up(n):
    words = ["a", "b", "c", "a", "b"]
    (found,) = by_bucket(NgramFeaturizer(n=n, buckets=3).compute([text(0, " ".join(words))]))
    grams = [" ".join(words[i : i + k]) for k in range(1, n + 1) for i in range(len(words) - k + 1)]
    assert found == {b: sum(bucket(g, 3) == b for g in grams) for b in {bucket(g, 3) for g in grams}}
    assert sum(found.values()) == len(grams)


def test_buckets_ascend():
    rows = [text(i, words) for i, words in enumerate(["x y z", "y", "z z z x y z", "\u00c4rger \u6f22\u5b57!"])]
    assert all(list(row) == sorted(row) for row in by_bucket(NgramFeaturizer().compute(rows)))


def test_another_process_finds_the_same_buckets():
    code = (
        "from influray.features.ngram import NgramFeaturizer as F; from influray.protocols import TextExample as T;"
        "print(F().compute([T(0, 'one two three', 1, 1)]).counts.bucket.tolist())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert found.stdout.strip() == str(NgramFeaturizer().compute([text(0, "one two three")]).counts.bucket.tolist())


def test_counts_come_back_from_a_datastore_in_row_order(tmp_path):
    featurizer = NgramFeaturizer(buckets=50)
    blocks = [featurizer.compute([text(4, "d d e"), text(2, "b")]), featurizer.compute([text(3, "c c c")])]
    store = ShardStore(tmp_path)
    store.commit("a" * 64, feature_table(blocks, 50), {})
    store.commit("b" * 64, feature_table([featurizer.compute([text(7, "f")])], 50), {})
    store.freeze(["a" * 64, "b" * 64], {"dimension": 50})
    datastore = Datastore(tmp_path)
    assert datastore.column("row").tolist() == [2, 3, 4, 7]
    assert datastore.column("tokens").tolist() == [20, 30, 40, 70]
    found = datastore.counts()
    expected = featurizer.compute([text(2, "b"), text(3, "c c c"), text(4, "d d e"), text(7, "f")]).counts
    for name in ("offset", "bucket", "count"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


def test_a_slice_of_a_part_holds_its_own_counts():
    rows = [text(i, words) for i, words in enumerate(["a b", "c", "d d d e", "f g h"])]
    featurizer = NgramFeaturizer(buckets=97)
    table = feature_table([featurizer.compute(rows)], 97)
    for start, stop in ((0, 4), (1, 3), (2, 4), (3, 3)):
        found = counts_of(table.slice(start, stop - start), "here")
        expected = featurizer.compute(rows[start:stop]).counts
        for name in ("offset", "bucket", "count"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    with pytest.raises(ArtifactMismatch, match="here: has no column 'bucket', only row"):
        counts_of(table.select(["row"]), "here")


def test_users_and_assistants_are_read_whole_as_the_record_has_them(tmp_path):
    system = [{"role": "system", "content": "Be brief."}]
    turns = [("user", " Hi,  there "), ("assistant", "Hello"), ("user", "x" * 300), ("assistant", "Done.")]
    messages = system + [{"role": role, "content": content} for role, content in turns]
    rows = [*pool_rows(3), {"id": "long", "messages": messages}]
    write_jsonl(tmp_path / "raw" / "a.jsonl", rows)
    config = DataConfig(pool=("raw",), targets={"t": "raw"}, max_tokens=64)
    files = [("", file) for file in resolve_files(config.pool, tmp_path, "data.pool")]
    encoder = ChatEncoder(byte_tokenizer(), "auto", 64)
    where = tmp_path / "q.jsonl"
    catalogue = build_catalogue(tmp_path / "pool", "pool", files, encoder, "k", config, quarantine=where)
    long = catalogue.texts(3, 4)[0]
    assert long.text == "\n".join(content for _, content in turns)
    assert long.tokens == 64
    assert [e.row for e in catalogue.texts(0, 4)] == [0, 1, 2, 3]
    for row, example in enumerate(catalogue.texts(0, 4)):
        (tokenized,) = catalogue.tokenized(row, row + 1)
        assert (example.tokens, example.loss_tokens) == (tokenized.tokens, tokenized.loss_tokens)
    assert catalogue.record_digest(0, 3) == Catalogue(tmp_path / "pool").record_digest(0, 3)
    assert len({catalogue.record_digest(*cut) for cut in ((0, 3), (0, 4), (1, 4), (0, 2))}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, r"features\.options\.n: found 0, expected an integer from 1 to 16"),
        ({"n": True}, r"features\.options\.n: found True"),
        ({"buckets": 2.5}, r"features\.options\.buckets: found 2\.5"),
        ({"bucket": 3}, r"features\.options\.bucket: .*did you mean 'buckets'\? \(known: n, buckets\)"),
    ],
)
def test_wrong_options_are_named_by_their_key(options, message):
    with pytest.raises(ConfigError, match=message):
        make("featurizers", "ngram", options)
