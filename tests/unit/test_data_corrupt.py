"""Every file of the corrupt collection is judged as its MANIFEST says, through the whole data layer."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

from influray.config import DataConfig
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.data.quarantine import read_quarantine
from influray.protocols import DataError
from tests.tiny import CHATML, byte_tokenizer

FOLDER = Path(os.environ.get("INFLURAY_DATA", "."), "corrupt")
MANIFEST = json.loads((FOLDER / "MANIFEST.json").read_bytes()) if (FOLDER / "MANIFEST.json").exists() else {}
# What the manifest counts as bad and is read by now: speakers of calls, question and answer, messages as a JSON text,
# ids of any type.
READ_SINCE = {"20_other_schemas.jsonl": {4, 10, 14}, "10_ids.jsonl": {3, 4, 9, 10, 21}, "14_turn_order.jsonl": {10}}
# What the manifest took for refused, and is read by its content: lines that end with CR, an array, a name that misleads.
BY_CONTENT = ("15b_cr_only.jsonl", "21_json_array.jsonl", "23c_not_gzip.jsonl.gz", "23e_gzip_named.jsonl")
CALLS = ("19_tool_calls.jsonl", "20_other_schemas.jsonl")  # which a template of role and content does not write
TORN = {"23_truncated.jsonl.gz": "gzip", "23b_bad_crc.jsonl.gz": "gzip"}


def judge(folder: Path, *names: str, template: str | None = CHATML, max_tokens: int = 512) -> tuple[Catalogue, list]:
    config = DataConfig(root=str(FOLDER), pool=names, targets={"t": "t.jsonl"}, max_bad_fraction=1)
    files = [("", file) for file in resolve_files(config.pool, FOLDER, "data.pool")]
    encoder = ChatEncoder(byte_tokenizer(template), "auto", max_tokens)
    quarantine = folder / "quarantine.jsonl"
    catalogue = build_catalogue(folder / "pool", "pool", files, encoder, "key", config, quarantine=quarantine)
    return catalogue, read_quarantine(quarantine)


NAMES = [name for name in MANIFEST if name not in (*TORN, *BY_CONTENT)] or ["none"]


@pytest.mark.parametrize(
    ("template", "name"),
    [
        *(pytest.param(CHATML, name, id=f"chatml-{name}") for name in NAMES if name not in CALLS),
        *(pytest.param(None, name, id=f"tulu-{name}") for name in NAMES),
    ],
)
def test_a_corrupt_file_is_judged_as_its_manifest_says(real_data, tmp_path, name, template):
    facts = MANIFEST[name]
    names = [name]
    if name.endswith("across_files_b.jsonl"):
        names.insert(0, name.replace("_b.", "_a."))
    if facts["good_rows"] == 0:
        with pytest.raises(DataError, match="no usable row"):
            judge(tmp_path, *names, template=template)
        found = read_quarantine(tmp_path / "quarantine.jsonl")
        assert [entry["line"] for entry in found if entry["file"] == name] == facts["bad_lines"]
        return
    catalogue, found = judge(tmp_path, *names, template=template)
    bad = sorted(entry["line"] for entry in found if entry["file"] == name)
    read = READ_SINCE.get(name, set())
    assert bad == sorted({*facts["bad_lines"]} - read), [(entry["line"], entry["reason"]) for entry in found]
    columns = catalogue.facts("file", "line")
    good = [line for file, line in zip(columns["file"], columns["line"].tolist(), strict=True) if file == name]
    if facts["good_rows"] is not None and len(names) == 1:
        assert len(good) == len(catalogue) >= facts["good_rows"]
    blanks = {5, 9} if name == "01_malformed_lines.jsonl" else set()  # blank lines are passed over
    assert set(facts["odd_but_valid_lines"]) - blanks <= set(good)
    if not name.endswith(".gz"):
        lines = (FOLDER / name).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
        for i in range(len(catalogue)):
            if columns["file"][i] == name:
                assert catalogue.record(i) == lines[columns["line"][i] - 1].removesuffix(b"\r")


def test_a_call_that_the_template_does_not_write_is_refused_by_name(real_data, tmp_path):
    with pytest.raises(DataError, match="no usable row"):
        judge(tmp_path / "calls", CALLS[0])
    found = read_quarantine(tmp_path / "calls" / "quarantine.jsonl")
    assert len(found) == MANIFEST[CALLS[0]]["good_rows"]
    assert all("does not write its tool_calls; give model.chat_template" in entry["reason"] for entry in found)
    _, found = judge(tmp_path / "others", CALLS[1])
    assert [entry["line"] for entry in found if "does not write its tool_calls" in entry["reason"]] == [1, 4]


@pytest.mark.parametrize("name", sorted(TORN))
def test_a_torn_stream_keeps_its_whole_rows_and_says_where_it_broke(real_data, tmp_path, name):
    catalogue, found = judge(tmp_path, name)
    (entry,) = found
    assert "gzip stream breaks off" in entry["reason"]
    assert catalogue.facts("line")["line"].tolist() == list(range(1, entry["line"]))
    whole, _ = judge(tmp_path / "whole", "23d_two_members.jsonl.gz")
    if name == "23b_bad_crc.jsonl.gz":
        plain = zlib.decompressobj(wbits=-15).decompress((FOLDER / name).read_bytes()[10:])
        assert len(catalogue) == plain.count(b"\n")  # the checksum stands at the very end
    assert catalogue.records(range(len(catalogue))) == whole.records(range(len(catalogue)))


def test_ids_given_twice_name_the_first_place(real_data, tmp_path):
    _, found = judge(tmp_path, "07_duplicate_ids.jsonl")
    assert [entry["reason"].split("at ")[1] for entry in found] == [
        f"07_duplicate_ids.jsonl:{line}" for line in (2, 3, 3)
    ]


def test_a_huge_prompt_loses_nothing_of_its_answer(real_data, tmp_path):
    catalogue, _ = judge(tmp_path, "08_huge_message.jsonl", max_tokens=1024)
    tokenizer = byte_tokenizer()
    examples = catalogue.tokenized(0, 5)
    assert [example.tokens for example in examples[1:4]] == [1024, 1024, 1024]
    assert catalogue.facts("truncated")["truncated"].tolist() == [False, True, True, True, False]
    trained = examples[1].input_ids_S[examples[1].loss_mask_S]
    assert tokenizer.decode(trained) == "Done.<|im_end|>"
    # Of the over-long answer only the end goes, since its prompt is shorter than a quarter.
    prompt = examples[2].tokens - examples[2].loss_tokens
    assert prompt < 256
    assert examples[2].loss_mask_S.tolist() == [False] * prompt + [True] * (1024 - prompt)


def test_special_tokens_in_content_stay_text(real_data, tmp_path):
    catalogue, _ = judge(tmp_path, "24_special_tokens.jsonl")
    tokenizer = byte_tokenizer()
    specials = {tokenizer.convert_tokens_to_ids(token) for token in ("<|im_start|>", "<|im_end|>", "<s>", "</s>")}
    for example, record in zip(catalogue.tokenized(0, 6), catalogue.records(range(6)), strict=True):
        turns = json.loads(record)["messages"]
        assert sum(int(token) in specials for token in example.input_ids_S) == 2 * len(turns)
        trained = tokenizer.decode(example.input_ids_S[example.loss_mask_S])
        assert trained == turns[-1]["content"] + "<|im_end|>"


@pytest.mark.parametrize("name", BY_CONTENT)
def test_a_file_is_read_by_its_content(real_data, tmp_path, name):
    catalogue, found = judge(tmp_path, name)
    assert len(catalogue) > 0
    assert found == []
    assert all(json.loads(record) and b"\n" not in record for record in catalogue.records(range(len(catalogue))))
