"""What a selection is exported as: read back by `datasets`, and by influray itself, it is the same conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import load_dataset
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from influray.cli.app import app
from influray.config import TuneConfig, dump_config, parse_config
from influray.data.catalogue import build_catalogue
from influray.data.chat import Encoded
from influray.data.export_forms import FORMATS, HANDLES, Unfit, formed
from influray.data.files import resolve_files
from influray.data.records import Record, parse_record
from influray.data.turns import BadRow, Turn
from influray.protocols import ConfigError, DataError
from influray.report import export as exporting
from influray.runs import Run, open_run
from influray.runtime.selecting import select_and_write
from influray.store import late_types
from influray.store.artifact import ShardStore
from influray.store.attribution import attribution_table, commit_attribution
from influray.store.run_directory import RunDirectory
from tests.records_strategy import written
from tests.tiny import byte_tokenizer, chat, tiny_llama, write_jsonl


class AnyEncoder:
    """Encodes every record alike: what an export writes does not depend on tokens."""

    def encode_many(self, records: list[Record]) -> list[Encoded | BadRow]:
        return [Encoded(np.arange(4, dtype=np.int32), np.array([2, 4], np.int32), 2, False) for _ in records]


def make_run(folder: Path, rows: list[dict[str, Any]]) -> Run:
    """Write a run whose selection `all` holds every row, in an order of its own, and `few` three of them."""
    run = RunDirectory(folder)
    write_jsonl(folder / "raw" / "pool.jsonl", rows)
    selectors = [
        {"name": "all", "method": "sum", "budget": len(rows)},
        {"name": "few", "method": "random", "budget": min(3, len(rows))},
    ]
    tree = {
        "model": {"base": "tiny", "lora": {"r": 4, "alpha": 8}},
        "data": {"root": str(folder), "pool": "raw/pool.jsonl", "targets": {"t": "raw/pool.jsonl"}},
        "selectors": selectors,
        "tune": {"learning_rate": 1e-3, "batch_size": 8},
    }
    config = parse_config(tree)
    run.write_config(dump_config(config))
    files = [("", file) for file in resolve_files(config.data.pool, config.data.root, "data.pool")]
    catalogue = build_catalogue(
        run.data("pool"), "pool", files, AnyEncoder(), "t", config.data, quarantine=run.quarantine_path
    )
    assert len(catalogue) == len(rows), "every row can be used"
    store = ShardStore(run.attribution)
    store.commit("a", attribution_table(np.arange(len(rows)), scores(len(rows))), {})
    commit_attribution(store, ["a"], {}, np.arange(2), ["t0", "t1"], ["t", "t"])
    for selector in config.selectors:
        select_and_write(run.path, selector.model_dump(), "f" * 64)
    return open_run(folder)


def scores(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).standard_normal((rows, 2))


def loaded(path: str, cache: Path) -> list[dict[str, Any]]:
    kind = "parquet" if path.endswith(".parquet") else "json"
    return list(load_dataset(kind, data_files=path, split="train", cache_dir=str(cache)))


def told(record: Record, handles: bool = True) -> list[Any]:
    """What a record says, as plain values; without `handles` those that pair results with calls are left out."""
    turns = []
    for turn in record.turns:
        extra = json.loads(json.dumps({k: v for k, v in turn.extra.items() if v is not None and k != "content"}))
        if not handles:
            extra = {k: v for k, v in extra.items() if f"tool.{k}" not in HANDLES or turn.role != "tool"}
            for call in extra.get("tool_calls", ()):
                call.pop("id", None)
        turns.append([turn.role, turn.content or "", extra, turn.trained])
    return rounded([turns, list(record.tools), dict(record.template_options)])


def rounded(value: Any) -> Any:
    """Fractions to eight digits: `datasets` keeps ten of those in JSON lines."""
    if isinstance(value, float):
        return round(value, 8) if abs(value) < 1 else float(f"{value:.8g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return {key: rounded(item) for key, item in value.items()} if isinstance(value, dict) else value


def carried(record: Record, form: str) -> bool:
    try:
        formed(record, form)
    except Unfit:
        return False
    return True


def drawn(count: int) -> list[dict[str, Any]]:
    """Rows of all forms, the same ones each time."""
    rows: list[dict[str, Any]] = []

    @settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(written())
    def draw(row) -> None:
        rows.append({**row.tree, "id": f"r{len(rows)}"})

    draw()
    return rows[:count]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> tuple[Run, dict[str, Record]]:
    folder = tmp_path_factory.mktemp("mixed")
    rows = drawn(200)
    assert len(rows) == 200
    run = make_run(folder, rows)
    return run, {row["id"]: parse_record(json.dumps(row).encode()) for row in rows}


@pytest.mark.parametrize("parquet", [False, True])
@pytest.mark.parametrize("form", FORMATS)
def test_200_records_of_mixed_forms_come_back_as_the_same_conversations(mixed, tmp_path, form, parquet):
    run, records = mixed
    made = run.export(tmp_path / "out", "all", format=form, parquet=parquet, skip=True)
    rows = loaded(made.path, tmp_path / "cache")
    carries = {identity for identity, record in records.items() if carried(record, form)}
    assert {row["id"] for row in rows} == carries
    assert len(rows) == made.records > 20
    if form == "messages":
        assert made.records == 200
    for row in rows:
        again = parse_record(json.dumps(row).encode())
        handles = form in ("messages", "prompt-completion")
        assert told(again, handles) == told(records[row["id"]], handles), row
        assert not any("messages" in row and not turn["role"] for turn in row.get("messages", ()))


def test_rows_stand_in_order_of_choice_with_the_columns_asked_for(mixed, tmp_path):
    run, _ = mixed
    made = run.export(tmp_path / "few.jsonl", "few", beside=("rank", "merit", "task", "weight"))
    rows = [json.loads(line) for line in Path(made.path).read_bytes().splitlines()]
    chosen = [f"r{row}" for row in run.selection("few").rows]
    assert [row["id"] for row in rows] == chosen
    assert [row["rank"] for row in rows] == [1, 2, 3]
    assert all(row["weight"] == 1 and row["merit"] is None and row["task"] is None for row in rows)
    assert len({tuple(row) for row in rows}) == 1, "every record has the same columns"


CALLS = [
    {"id": "a", "type": "function", "function": {"name": "tide", "arguments": {"port": "Brest", "at": None}}},
    {"id": "b", "type": "function", "function": {"name": "sum", "arguments": {"x": 2, "y": [1, "z"]}}},
]
TOOLS = [{"type": "function", "function": {"name": "tide", "parameters": {"properties": {"port": {"type": "string"}}}}}]
CALLING = {
    "id": "calls",
    "tools": TOOLS,
    "messages": [
        {"role": "user", "content": "When is high water?"},
        {"role": "assistant", "content": None, "tool_calls": CALLS[:1]},
        {"role": "tool", "tool_call_id": "a", "name": "tide", "content": "At nine."},
        {"role": "assistant", "content": "At nine.", "reasoning_content": "The tool says so."},
    ],
}
PLAIN = chat("plain", "s", "Hi", "Hello.")
MASKED = {
    "id": "masked",
    "messages": [
        {"role": "user", "content": "1?"},
        {"role": "assistant", "content": "one", "weight": 0},
        {"role": "user", "content": "2?"},
        {"role": "assistant", "content": "two", "weight": 1},
    ],
}
OPTIONED = {**chat("optioned", "s", "Why?", "So."), "chat_template_kwargs": {"enable_thinking": False}}


def test_arguments_of_tools_get_no_nulls_and_keep_their_own(tmp_path):
    other = {**CALLING, "id": "other"}
    other["messages"] = [*CALLING["messages"][:1], {"role": "assistant", "content": "x", "tool_calls": CALLS}]
    run = make_run(tmp_path / "run", [CALLING, PLAIN, other])
    for name in ("a.jsonl", "a.parquet"):
        rows = {r["id"]: r for r in loaded(run.export(tmp_path / name, "all").path, tmp_path / "cache")}
        assert rows["calls"]["messages"] == CALLING["messages"]
        assert rows["other"]["messages"][1]["tool_calls"] == CALLS
        assert rows["plain"]["messages"] == PLAIN["messages"], "no key that others have"
        assert json.loads(rows["calls"]["tools"]) == TOOLS
        assert rows["plain"]["tools"] is None


def test_fractions_that_datasets_rounds_in_json_lines_are_told_and_whole_in_parquet(tmp_path):
    calls = [{"type": "function", "function": {"name": "f", "arguments": {"x": 0.1, "y": 3.141592653589793}}}]
    row = {**CALLING, "messages": [CALLING["messages"][0], {"role": "assistant", "content": "", "tool_calls": calls}]}
    run = make_run(tmp_path / "run", [PLAIN, row])
    made = run.export(tmp_path / "a.jsonl", "all")
    assert [note for note in made.notes if "--parquet" in note and "1 records" in note]
    made = run.export(tmp_path / "a.parquet", "all")
    assert made.notes == run.export(tmp_path / "b.parquet", "all").notes
    assert not [note for note in made.notes if "--parquet" in note]
    (again,) = (r for r in loaded(made.path, tmp_path / "cache") if r["id"] == "calls")
    assert again["messages"][1]["tool_calls"][0]["function"]["arguments"]["y"] == 3.141592653589793


@pytest.mark.parametrize(
    ("row", "form", "reason", "better"),
    [
        (CALLING, "alpaca", "turn of tool|key 'tool_calls'|turn of assistant", "messages|sharegpt"),
        (CALLING, "sharegpt", "the key 'reasoning_content' of a turn", "messages"),
        (MASKED, "alpaca", "an answer that is not trained", "messages"),
        (OPTIONED, "sharegpt", "arguments of the chat template .enable_thinking", "messages"),
        (
            {"id": "d", "messages": [{"role": "developer", "content": "x"}, *PLAIN["messages"]]},
            "sharegpt",
            "a turn of developer",
            "messages",
        ),
        (
            {
                "id": "m",
                "messages": [
                    *PLAIN["messages"],
                    {"role": "user", "content": "?"},
                    {"role": "assistant", "content": "!", "weight": 0},
                ],
            },
            "prompt-completion",
            "an untrained answer after a trained one",
            "messages",
        ),
    ],
)
def test_what_a_form_cannot_carry_is_refused_by_record_with_the_form_that_can(tmp_path, row, form, reason, better):
    run = make_run(tmp_path / "run", [PLAIN, row])
    target = tmp_path / "out.jsonl"
    with pytest.raises(
        DataError, match=f"(?s){form} cannot carry 1 of 2 records: .*({reason}).*{row['id']}.*({better})"
    ):
        run.export(target, "all", format=form)
    assert not target.exists()
    made = run.export(target, "all", format=form, skip=True)
    assert [r["id"] for r in loaded(made.path, tmp_path / "cache")] == ["plain"]
    assert any(note.startswith("left out:") and row["id"] in note for note in made.notes)
    assert run.export(tmp_path / "all.jsonl", "all").records == 2


def test_files_of_others_are_never_replaced_and_a_stopped_export_can_be_repeated(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", [PLAIN, chat("b", "s", "x", "y")])
    place = tmp_path / "out"
    place.mkdir()
    (place / "all.jsonl").write_text("mine")
    with pytest.raises(ConfigError, match="was not written by an export"):
        run.export(place, "all")
    assert (place / "all.jsonl").read_text() == "mine"
    (place / "all.jsonl").unlink()
    (place / "dataset_info.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"dataset_info\.json is there and was not written"):
        run.export(place, "all")
    (place / "dataset_info.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(exporting, "snippet", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run.export(place, "all")
    first = run.export(place, "all")
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert run.export(place, "all") == first
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    run.export(place, "few")
    assert set(json.loads((place / "dataset_info.json").read_text())) == {"all", "few"}
    (place / "all.trl.py").write_text("changed")
    with pytest.raises(ConfigError, match="was changed since it was exported"):
        run.export(place, "all")


@pytest.mark.parametrize(
    ("to", "arguments", "message"),
    [
        ("x.csv", {}, "ends in .csv"),
        ("x.jsonl", {"parquet": True}, "end it in .parquet"),
        ("x", {"format": "chatml"}, "expected one of messages, alpaca, sharegpt, prompt-completion"),
        ("x", {"beside": ("ranks",)}, "--with: found 'ranks'"),
        ("run/selection/all", {}, "among the files of the run"),
        ("x", {"name": None}, "several selections; name one: all, few"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_written(tmp_path, to, arguments, message):
    run = make_run(tmp_path / "run", [PLAIN, chat("b", "s", "x", "y")])
    with pytest.raises(ConfigError, match=message):
        run.export(tmp_path / to, **{"name": "all", **arguments})
    assert not (tmp_path / "x").exists()


def test_a_type_behind_what_datasets_looks_at_is_refused_and_parquet_states_it(tmp_path, monkeypatch):
    monkeypatch.setattr(late_types, "CHUNK_BYTES", 300)
    rows = [chat(f"p{i}", "s", f"Question {i}?", "Yes.") for i in range(10)]
    last = int(scores(10).sum(axis=1).argmin())
    run = make_run(tmp_path / "run", [*rows[:last], {**CALLING, "id": "late"}, *rows[last + 1 :]])
    with pytest.raises(DataError, match="first of its kind.*add --parquet"):
        run.export(tmp_path / "a.jsonl", "all")
    assert not (tmp_path / "a.jsonl").exists()
    assert len(loaded(run.export(tmp_path / "a.parquet", "all").path, tmp_path / "cache")) == 10


def test_each_trainer_gets_settings_only_where_it_trains_on_every_record_as_it_stands(tmp_path):
    plain = make_run(tmp_path / "plain", [PLAIN, chat("two", "s", "a", "b", "c", "d")])
    wanted = {
        "messages": {"trl", "axolotl", "llamafactory"},
        "sharegpt": {"trl", "axolotl", "llamafactory"},
        "alpaca": {"trl", "llamafactory"},
        "prompt-completion": {"trl"},
    }
    for form, trainers in wanted.items():
        made = plain.export(tmp_path / form, "all", format=form)
        assert set(made.trainers) == trainers, form
        assert sum(note.startswith("no settings for") for note in made.notes) == 3 - len(trainers)
    for row, form, trainers in (
        (MASKED, "messages", {"axolotl"}),
        (MASKED, "prompt-completion", {"trl"}),
        (OPTIONED, "messages", {"trl"}),
        (CALLING, "messages", {"trl", "axolotl"}),
    ):
        run = make_run(tmp_path / row["id"] / form, [PLAIN, row])
        assert set(run.export(tmp_path / f"{row['id']}-{form}", "all", format=form).trainers) == trainers
    spoken = {**CALLING, "messages": [*CALLING["messages"][:3], {"role": "assistant", "content": "At nine."}]}
    made = make_run(tmp_path / "spoken", [PLAIN, spoken]).export(tmp_path / "s", "all", format="sharegpt")
    assert set(made.trainers) == {"llamafactory"}
    assert any("tool_calls.id in 1 records" in note for note in made.notes)


def test_settings_name_the_columns_as_each_trainer_documents_them(tmp_path):
    rows = [{**PLAIN, "messages": [{"role": "system", "content": "Be brief."}, *PLAIN["messages"]]}, MASKED]
    run = make_run(tmp_path / "run", rows[:1] * 1 + [chat("b", "s", "x", "y")])
    made = run.export(tmp_path / "sharegpt", "all", format="sharegpt", parquet=True)
    axolotl = yaml.safe_load(Path(made.trainers["axolotl"][0]).read_text())
    (entry,) = axolotl["datasets"]
    assert (entry["path"], entry["ds_type"], entry["type"]) == ("all.parquet", "parquet", "chat_template")
    assert entry["field_messages"] == "conversations"
    assert entry["message_property_mappings"] == {"role": "from", "content": "value"}
    assert "message_field_training" not in entry
    info, settings_file = (Path(path) for path in made.trainers["llamafactory"])
    assert json.loads(info.read_text()) == {
        "all": {"file_name": "all.parquet", "formatting": "sharegpt", "columns": {"messages": "conversations"}}
    }
    tree = yaml.safe_load(settings_file.read_text())
    assert (tree["dataset"], tree["dataset_dir"], tree["stage"]) == ("all", ".", "sft")
    assert (tree["lora_rank"], tree["learning_rate"]) == (4, 1e-3)
    made = run.export(tmp_path / "alpaca", "all", format="alpaca")
    info = json.loads(Path(made.trainers["llamafactory"][0]).read_text())["all"]
    assert info["columns"] == {"prompt": "instruction", "query": "input", "response": "output", "system": "system"}
    masked = make_run(tmp_path / "masked", [MASKED, PLAIN]).export(tmp_path / "m", "all")
    (entry,) = yaml.safe_load(Path(masked.trainers["axolotl"][0]).read_text())["datasets"]
    assert entry["message_field_training"] == "train"
    flags = [turn.get("train") for row in loaded(masked.path, tmp_path / "cache") for turn in row["messages"]]
    assert flags.count(False) == 1


def test_a_training_in_tokens_is_written_with_the_steps_that_tune_takes(tmp_path):
    run = make_run(tmp_path / "run", [chat(f"r{i}", "s", "q", "a") for i in range(30)])  # of four tokens each
    config = run.config.model_copy(update={"tune": TuneConfig(tokens=200, batch_size=8)})
    made = exporting.export(run.directory, config, "all", tmp_path / "out")
    # An epoch is 8 + 8 + 8 + 6 rows, 120 tokens; 80 more take three steps.
    for trainer in ("axolotl", "llamafactory"):
        assert yaml.safe_load(Path(made.trainers[trainer][-1]).read_text())["max_steps"] == 7
    assert "max_steps=7," in Path(made.trainers["trl"][0]).read_text()


GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}{% generation %}"
    "{{ m['content'] }}<|im_end|>{% endgeneration %}{% else %}{{ m['content'] }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("form", FORMATS)
def test_trl_trains_a_step_with_the_settings_and_on_the_answers_alone(tmp_path, monkeypatch, form):
    from transformers import AutoTokenizer

    tiny_llama().save_pretrained(tmp_path / "tiny")
    byte_tokenizer(GENERATION).save_pretrained(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    rows = [PLAIN, chat("b", "s", "Six and one?", "Seven."), chat("c", "s", "a", "bc", "de", "fgh")]
    run = make_run(tmp_path / "run", rows)
    made = run.export(tmp_path / "out", "all", format=form, parquet=form == "messages")
    code = Path(made.trainers["trl"][0]).read_text()
    code = code.replace("args = SFTConfig(", "args = SFTConfig(max_steps=1, report_to=[],")
    names: dict[str, Any] = {"__file__": made.trainers["trl"][0], "__name__": "snippet"}
    exec(compile(code, "trl.py", "exec"), names)
    assert names["trainer"].train().global_step == 1
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny")
    trained = sorted(
        tokenizer.decode([t for t, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100])
        for row in names["trainer"].train_dataset
    )
    assert [text.replace("\n", "") for text in trained] == [
        "Hello.<|im_end|>", "Seven.<|im_end|>", "bc<|im_end|>fgh<|im_end|>"
    ]  # fmt: skip


def test_the_command_writes_what_it_says_and_a_run_ends_with_it(tmp_path):
    run = make_run(tmp_path / "run", [PLAIN, MASKED])
    found = CliRunner().invoke(
        app, ["export", f"{run.directory.address}/all", "--to", str(tmp_path / "o"), "--with", "rank"]
    )
    assert found.exit_code == 0, found.output
    assert f"export: 2 records in {tmp_path / 'o' / 'all.jsonl'}" in found.output
    assert "no settings for TRL: it reads no flag of a turn" in found.output
    from influray.cli import export as cli_export
    from influray.cli.printing import out

    with out.capture() as printed:
        cli_export.print_selections(run)
    text = printed.get()
    assert str(run.directory.selection("all") / "selected.jsonl") in text
    assert "influray export" in text


@settings(max_examples=100, deadline=None, derandomize=True)
@given(row=written(), form=st.sampled_from(FORMATS))
def test_a_formed_record_is_read_as_it_was_or_refused(row, form):
    record = parse_record(row.raw)
    assert carried(record, "messages")
    if not carried(record, form):
        return
    made = formed(record, form)
    again = parse_record(json.dumps(made.columns).encode())
    assert told(again, handles=not made.left_out) == told(record, handles=not made.left_out)


def test_calls_after_an_answer_are_refused_in_sharegpt_since_they_would_be_read_as_one_turn():
    calls = {"tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}], "content": None}
    turns = (Turn("user", "x"), Turn("assistant", "I look."), Turn("assistant", "", calls), Turn("assistant", "y"))
    with pytest.raises(Unfit, match="right after an answer"):
        formed(Record(None, "", turns, None), "sharegpt")
