"""`influray init` and `influray configs`: what they write loads, says what the files hold, and names what cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from typer.testing import CliRunner

from influray.cli.app import app
from influray.config import load_config
from influray.data.entries import pool_files, target_files
from influray.miniature import BASE
from influray.planning.draft import Files, draft
from influray.protocols import ConfigError, DataError

ROOT = Path(__file__).parents[2]


def rows(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def pairs(path: Path, count: int = 30, **more: object) -> Path:
    return rows(path, *({"prompt": f"What is {i} + 1?", "completion": str(i + 1), **more} for i in range(count)))


def asked(*arguments: object):
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "80"})


def test_a_config_for_ones_own_files_loads_and_reads_those_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(tmp_path / "pool" / "a.jsonl", 40, source="math_train")
    rows(tmp_path / "pool" / "b.jsonl", {"instruction": "Add.", "input": "2, 3", "output": "5"}, "not json")
    pairs(tmp_path / "t" / "math.jsonl")
    pairs(tmp_path / "t" / "held out.jsonl")
    result = asked(
        *("init", "new", "--pool", "pool", "--target", "t/math.jsonl", "--target", "code=t/math.jsonl"),
        *("--test", "math=t/held out.jsonl", "--model", "some/base"),
    )
    assert result.exit_code == 0, result.output
    config = load_config(tmp_path / "new" / "influray.yaml")
    assert Path(config.run_dir) == tmp_path / "new" / "run"
    assert config.model.base == "some/base"
    assert [Path(file.path).name for file in pool_files(config.data)] == ["a.jsonl", "b.jsonl"]
    assert list(config.data.targets) == ["math", "code"]
    assert [Path(file.path).name for file in target_files(config.data, "math", test=True)] == ["held out.jsonl"]
    assert config.data.targets["math"].expected_sources == ("math_train",)
    assert config.data.max_bad_fraction >= 1 / 42, "or the run would stop"
    assert config.tune is not None, "there are held-out rows"
    assert "41 usable" in result.output
    assert "form prompt, completion: 40" in result.output
    assert "form instruction, output: 1" in result.output
    assert "pool/b.jsonl:2: " in result.output, "the row that cannot be read, by place"
    text = (tmp_path / "new" / "influray.yaml").read_text()
    again = asked("init", "new", "--pool", "pool", "--target", "t/math.jsonl")
    assert again.exit_code == 2 or isinstance(again.exception, ConfigError), "nothing is overwritten"
    assert (tmp_path / "new" / "influray.yaml").read_text() == text


def test_files_that_say_nothing_of_their_task_are_called_after_their_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(Path("pool.jsonl"))
    for task in ("sums", "words"):
        pairs(Path("targets", task, "few_shot.jsonl"), 5)
        pairs(Path("targets", task, "test.jsonl"), 6)
    by_file = [*("--target", "targets/sums/few_shot.jsonl", "--target", "targets/words/few_shot.jsonl")]
    by_file += ["--test", "targets/words/test.jsonl"]
    by_folder = ["--target", "targets/sums", "--target", "targets/words"]
    for folder, words, tested in (("a", by_file, ["words"]), ("b", by_folder, ["sums", "words"])):
        assert asked("init", folder, "--pool", "pool.jsonl", *words).exit_code == 0
        data = load_config(Path(folder, "influray.yaml")).data
        assert list(data.targets) == ["sums", "words"]
        assert [Path(file.path).name for file in target_files(data, "sums")] == ["few_shot.jsonl"]
        assert [task for task in data.targets if target_files(data, task, test=True)] == tested


def test_two_files_that_would_be_one_task_are_refused_and_named_ones_are_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("pool.jsonl", "x/math.jsonl", "y/math.jsonl"):
        pairs(Path(path))
    result = asked("init", "new", "--pool", "pool.jsonl", "--target", "x/math.jsonl", "--target", "y/math.jsonl")
    assert "would both be the task 'math'" in str(result.exception)
    named = ("--target", "math=x/math.jsonl", "--target", "math=y/math.jsonl")
    assert asked("init", "new", "--pool", "pool.jsonl", *named).exit_code == 0


def test_a_pool_that_holds_targets_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(Path("all", "pool.jsonl"))
    pairs(Path("all", "math.jsonl"))
    result = asked("init", "new", "--pool", "all", "--target", "all/math.jsonl")
    assert "the pool holds" in " ".join(result.output.split())
    assert "of data.targets.math" in " ".join(result.output.split())


def test_a_folder_in_place_of_its_config_is_told_the_config(tmp_path):
    (tmp_path / "influray.yaml").touch()
    with pytest.raises(ConfigError, match=r"did you mean .*influray\.yaml\?"):
        load_config(tmp_path)


def test_a_folder_that_is_no_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs(Path("pool.jsonl"))
    words = ("--pool", "pool.jsonl", "--target", "t=pool.jsonl", "--model", "./none")
    assert "there is no folder ./none" in str(asked("init", "new", *words).exception)


def test_tokens_are_those_of_the_base_and_rows_that_will_be_cut_are_told(tmp_path):
    """The miniature's tokenizer has 512 positions and a token for each letter or two."""
    lines = [{"prompt": "word " * (2 if i % 4 else 400), "completion": "yes"} for i in range(40)]
    pool = rows(tmp_path / "pool.jsonl", *lines)
    made = draft(Files((str(pool),), {"t": (str(pool),)}, {}), "r", str(BASE))
    path = tmp_path / "c.yaml"
    path.write_text(made.text)
    config = load_config(path)
    assert config.data.max_tokens == 512
    assert "the base has no more positions; longer rows are cut: some 25% of pool" in made.text
    encoder = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    counts = [min(512, len(encoder.encode(one["prompt"] + "\nyes").ids)) for one in lines]
    budget = config.selectors[0].budget
    assert budget.tokens == pytest.approx(sum(counts), rel=0.1), "forty rows are fewer than a hundred: all of them"


def test_without_held_out_rows_nothing_is_tuned_and_the_config_says_how(tmp_path):
    pool = pairs(tmp_path / "pool.jsonl")
    made = draft(Files((str(pool),), {"t": (str(pool),)}, {}), str(tmp_path / "run"))
    path = tmp_path / "c.yaml"
    path.write_text(made.text)
    assert load_config(path).tune is None
    assert load_config(path).data.targets["t"].limit is None
    assert "# tune:" in made.text
    path.write_text(made.text.replace("# tune:", "tune:").replace("\n#  ", "\n  "))
    assert load_config(path).tune is not None, "what is commented out is a config too"


def test_of_a_task_with_many_examples_a_hundred_are_taken(tmp_path):
    pool = pairs(tmp_path / "pool.jsonl", 150)
    path = tmp_path / "c.yaml"
    path.write_text(draft(Files((str(pool),), {"t": (str(pool),)}, {}), "r").text)
    assert load_config(path).data.targets["t"].limit == 100


def test_files_that_number_alike_are_scoped_and_columns_are_mapped(tmp_path):
    files = [
        rows(tmp_path / f"{name}.jsonl", *({"id": i, "q": f"{name}{i}", "a": "x"} for i in range(5))) for name in "ab"
    ]
    made = draft(
        Files(tuple(map(str, files)), {"t": (str(files[0]),)}, {}), "r", columns={"prompt": "q", "completion": "a"}
    )
    path = tmp_path / "c.yaml"
    path.write_text(made.text)
    data = load_config(path).data
    assert data.pool[0].ids == "scoped"
    assert data.columns.prompt == "q"
    assert made.found["data.pool"].usable == 10
    assert made.found["data.pool"].shared == 5


@pytest.mark.parametrize(
    ("pool", "columns", "said"),
    [
        ([{"text": "plain"}], {}, "none of 1 rows can be read; pool.jsonl:1: no known form"),
        (None, {}, "no such file"),
        ([{"prompt": "a", "completion": "b"}], {"promt": "a"}, "no key is called 'promt'"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path, monkeypatch, pool, columns, said):
    monkeypatch.chdir(tmp_path)
    if pool is not None:
        rows(Path("pool.jsonl"), *pool)
    pairs(Path("t.jsonl"))
    with pytest.raises((ConfigError, DataError), match=said.replace("(", r"\(")):
        draft(Files(("pool.jsonl",), {"t": ("t.jsonl",)}, {}), "r", columns=columns)


@given(st.text(min_size=1, max_size=30).filter(lambda text: text.strip() and "/" not in text and "\0" not in text))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_or_a_source_is_called_the_config_names_it(tmp_path, name):
    try:
        path = pairs(tmp_path / f"{name}.jsonl", 3, source=name)
    except (OSError, UnicodeEncodeError):
        return  # no file can be called so
    made = draft(Files((str(path),), {"t": (str(path),)}, {}), "r")
    config = tmp_path / "config.yaml"
    config.write_text(made.text, encoding="utf-8")
    (file,) = pool_files(load_config(config).data)
    assert Path(file.path) == path


def test_every_config_that_comes_along_is_listed_and_printed_as_it_is():
    listed = asked("configs").output
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert path.stem in listed
        assert asked("configs", path.stem).output == path.read_text(encoding="utf-8")
    assert "did you mean 'less'" in str(asked("configs", "lees").exception)
