"""influray inspect: roles, tools, what is trained and what the template cuts, so that a person sees it."""

from __future__ import annotations

from typer.testing import CliRunner

from influray.cli.app import app
from influray.config import dump_config, parse_config
from tests.tiny import target_rows, write_jsonl, write_tiny_model

TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "tide", "arguments": '{"port": "Brest"}'}}
TURNS = [
    {"role": "user", "content": "High water?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": "Ask\nthe table."},
    {"role": "tool", "content": "06:40"},
    {"role": "assistant", "content": "At 06:41.", "weight": 0},
    {"role": "user", "content": "Again?"},
    {"role": "assistant", "content": "At 06:40."},
]
CUTTING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] or m['tool_calls'] | tojson }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def inspected(tmp_path, template: str) -> str:
    write_tiny_model(tmp_path / "model")
    (tmp_path / "template.jinja").write_text(template)
    write_jsonl(tmp_path / "pool.jsonl", [{"id": "call", "source": "sea", "messages": TURNS, "tools": [TOOL]}])
    write_jsonl(tmp_path / "target.jsonl", target_rows("t"))
    tree = {
        "run_dir": str(tmp_path / "run"),
        "model": {"base": str(tmp_path / "model"), "chat_template": str(tmp_path / "template.jinja")},
        "data": {"root": str(tmp_path), "pool": "pool.jsonl", "targets": {"t": "target.jsonl"}},
        "selectors": [{"name": "s", "method": "sum", "budget": 1}],
    }
    (tmp_path / "config.yaml").write_text(dump_config(parse_config(tree)))
    done = CliRunner().invoke(app, ["inspect", str(tmp_path / "config.yaml"), "--row", "0"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_turns_tools_and_trained_text_are_shown(tmp_path):
    tooled = "{% if tools %}{{ tools | tojson }}\n{% endif %}" + CUTTING.replace(
        "{{ m['content'] or m['tool_calls'] | tojson }}",
        "{{ m['reasoning_content'] or '' }}{{ m['content'] or m['tool_calls'] | tojson }}",
    )
    text = inspected(tmp_path, tooled)
    assert "row 0  id 'call'  pool.jsonl:1  source sea" in text
    assert "tools: tide" in text
    assert "cut by" not in text
    flat = " ".join(text.split())  # a narrow terminal breaks cells
    assert "2 assistant yes Ask the table." in flat
    assert "3 tool 06:40" in flat
    assert "4 assistant At 06:41." in flat, "an answer of weight 0 is not trained"
    assert "6 assistant yes At 06:40." in flat
    assert "At 06:41.<|im_end|>" in text
    assert "\u27e6At 06:40.<|im_end|>\u27e7" in text
    marked = text.split("\u27e6")[1].split("\u27e7")[0]
    assert marked.startswith("Ask\nthe table.")
    assert '"name": "tide"' in marked


def test_what_the_template_cuts_is_named(tmp_path):
    text = inspected(tmp_path, CUTTING)
    cut = " ".join(text.split("cut by the chat template")[1].split("turn role")[0].split())
    assert "reasoning_content of turn 2" in cut
    assert "tools" in cut
