"""What TRL, axolotl and LLaMA-Factory read of an exported file, and the settings with which they train on it.

A trainer that would read a record otherwise than it stands gets no settings for the file; the reason is told.

Sources: TRL 1.16, trainer/sft_trainer.py and its page on dataset formats; axolotl (July 2026),
docs/dataset-formats/conversation and prompt_strategies/chat_template.py; LLaMA-Factory (August 2026), data/README.md
and src/llamafactory/data/converter.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from influray.config import Config, TuneConfig
from influray.config_model import FinetuneConfig
from influray.data.records import Record
from influray.report.templating import environment

NAMES = {"trl": "TRL", "axolotl": "axolotl", "llamafactory": "LLaMA-Factory"}


@dataclass(frozen=True)
class Written:
    """What a snippet has to know of the file beside it."""

    file: str  # its name
    form: str
    parquet: bool
    columns: frozenset[str]
    untrained: bool  # some answer is not trained
    several: bool  # some record has more than one answer
    options: Mapping[str, Any]  # of the chat template, where every record has the same
    steps: int | None = None  # after which the training ends; None where epochs say it


def misread(trainer: str, form: str, record: Record, first: Record) -> str | None:
    """Return why a trainer would not train on a record as it stands in a form, None where it would.

    `first` is the first record of the file, for what a trainer takes one setting of.
    """
    if trainer == "trl":
        return _misread_by_trl(form, record)
    if trainer == "axolotl":
        return _misread_by_axolotl(form, record, first)
    return _misread_by_llamafactory(form, record)


def _misread_by_trl(form: str, record: Record) -> str | None:
    if form == "sharegpt" and _has_calls(record):
        return "it knows no speakers of tool calls; --format messages"
    if form != "prompt-completion" and _untrained(record):
        return "it reads no flag of a turn, and would train on all answers; --format prompt-completion"
    return None


def _misread_by_axolotl(form: str, record: Record, first: Record) -> str | None:
    if form == "prompt-completion":
        return "it reads one list of messages; --format messages"
    if form == "sharegpt" and _has_calls(record):
        return "it knows no speakers of tool calls; --format messages"
    if form == "alpaca" and (record.tools or len(record.turns) > 2 + (record.turns[0].role == "system")):
        return "it reads neither history nor tools of an alpaca row; --format messages"
    if dict(record.template_options) != dict(first.template_options):
        return "it takes one chat_template_kwargs for all records; --format messages for TRL"
    return None


def _misread_by_llamafactory(form: str, record: Record) -> str | None:
    if form == "prompt-completion":
        return "it reads no lists of prompt and completion; --format sharegpt"
    if _untrained(record):
        return "it reads no flag of a turn, and would train on all answers; --format messages for axolotl"
    if form == "messages":
        if record.template_options:
            return "it reads no chat_template_kwargs; --format messages for TRL"
        if any(turn.extra.get("tool_calls") for turn in record.turns):
            return "its `datasets` fills up the arguments of tool calls with nulls; --format sharegpt"
        keys = sorted({key for turn in record.turns for key in turn.extra if key not in ("content", "tool_call_id")})
        if keys:
            return f"it does not read the key {keys[0]!r} of a turn; --format messages for TRL or axolotl"
    turns = record.turns[1:] if record.turns[0].role == "system" else record.turns
    heard = [turn.role in ("user", "tool") for turn in turns]
    if len(turns) % 2 or heard != [i % 2 == 0 for i in range(len(turns))]:
        return "it leaves out records whose turns do not alternate; --format messages for TRL or axolotl"
    return None


def _has_calls(record: Record) -> bool:
    return any(turn.role == "tool" or turn.extra.get("tool_calls") for turn in record.turns)


def _untrained(record: Record) -> bool:
    return any(turn.role == "assistant" and not turn.trained for turn in record.turns)


def snippet(trainer: str, written: Written, config: Config, stem: str) -> dict[str, str]:
    """Return the files of a trainer for an exported file: ending of the name (or whole name) -> text."""
    config = config.tuned
    return {"trl": _trl, "axolotl": _axolotl, "llamafactory": _llamafactory}[trainer](written, config, stem)


def _trl(written: Written, config: Config, stem: str) -> dict[str, str]:
    tune = _tune(config)
    batch, accumulated = _batches(tune)
    template = environment(escape=False).get_template("trl.py.j2")
    kind, settings = "parquet" if written.parquet else "json", {"tune": tune, "lora": config.model.lora, "stem": stem}
    settings |= {"batch": batch, "accumulated": accumulated, "base": _base(config), "config": config}
    return {"trl.py": template.render(written=written, kind=kind, **settings)}


def _axolotl(written: Written, config: Config, stem: str) -> dict[str, str]:
    tune, lora = _tune(config), config.model.lora
    batch, accumulated = _batches(tune)
    data: dict[str, Any] = {"path": written.file, "ds_type": "parquet" if written.parquet else "json"}
    note = ""
    if written.form == "alpaca":
        data["type"] = "alpaca_w_system.load_instruct" if "system" in written.columns else "alpaca"
        note = (
            '# axolotl lays alpaca rows out as "### Instruction:", not by the chat template of the model, by which\n'
            "# influray has read them; `--format messages` keeps to the template.\n"
        )
    else:
        data["type"] = "chat_template"
        if written.form == "sharegpt":
            data["field_messages"] = "conversations"
            data["message_property_mappings"] = {"role": "from", "content": "value"}
            data["roles"] = {"system": ["system"], "user": ["human"], "assistant": ["gpt"]}
        else:
            data["field_messages"] = "messages"
        if written.untrained:
            data["message_field_training"] = "train"
        data |= {"roles_to_train": ["assistant"], "train_on_eos": "turn"}
    tree: dict[str, Any] = {"base_model": _base(config)}
    if written.form != "alpaca":
        tree["chat_template"] = "tokenizer_default"
    if written.options:
        tree["chat_template_kwargs"] = dict(written.options)
    tree |= {
        "datasets": [data],
        "dataset_prepared_path": f"{stem}-prepared",
        "output_dir": f"{stem}-axolotl",
        "sequence_len": config.data.max_tokens,
        "adapter": "lora",
        "lora_r": lora.r,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "lora_target_modules": list(lora.targets),
        "num_epochs": tune.epochs,
        **({"max_steps": written.steps} if written.steps else {}),
        "micro_batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "optimizer": "adamw_torch",
        "learning_rate": tune.learning_rate,
        "lr_scheduler": tune.schedule,
        "bf16": "auto",
    }
    head = f"# In this folder: axolotl train {stem}.axolotl.yaml. Written by `influray export`, to be changed freely.\n"
    if written.form != "alpaca":
        note += (
            "# Where the template ends a turn with another token than eos, name it under `eot_tokens`. A base without\n"
            "# a template needs one: chat_template: chatml, for example.\n"
        )
    return {"axolotl.yaml": head + note + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)}


def _llamafactory(written: Written, config: Config, stem: str) -> dict[str, str]:
    tune, lora = _tune(config), config.model.lora
    batch, accumulated = _batches(tune)
    # Where columns are given at all, each that is not named counts as absent.
    optional = {name: name for name in ("system", "history", "tools") if name in written.columns}
    entry: dict[str, Any] = {"file_name": written.file}
    if written.form == "alpaca":
        entry["columns"] = {"prompt": "instruction", "query": "input", "response": "output", **optional}
    elif written.form == "sharegpt":
        entry |= {"formatting": "sharegpt", "columns": {"messages": "conversations", **optional}}
    else:
        entry |= {
            "formatting": "openai",
            "columns": {"messages": "messages", **optional},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "observation_tag": "tool",
                "function_tag": "function_call",
                "system_tag": "system",
            },
        }
    tree = {
        "model_name_or_path": _base(config),
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": lora.r,
        "lora_alpha": _whole(lora.alpha),
        "lora_dropout": lora.dropout,
        "lora_target": ",".join(lora.targets),
        "dataset_dir": ".",
        "dataset": stem,
        "cutoff_len": config.data.max_tokens,
        "output_dir": f"{stem}-llamafactory",
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": tune.learning_rate,
        "num_train_epochs": float(tune.epochs),
        **({"max_steps": written.steps} if written.steps else {}),
        "lr_scheduler_type": tune.schedule,
        "bf16": True,
        "report_to": "none",
    }
    head = (
        f"# In this folder: llamafactory-cli train {stem}.llamafactory.yaml. Written by `influray export`, to be\n"
        "# changed freely. LLaMA-Factory has templates of its own: name that of your model (template: qwen3), or it\n"
        "# reads that of the tokenizer as far as it can.\n"
    )
    return {
        "dataset_info.json": json.dumps({stem: entry}, indent=2, ensure_ascii=False) + "\n",
        "llamafactory.yaml": head + yaml.safe_dump(tree, sort_keys=False, allow_unicode=True),
    }


def _tune(config: Config) -> FinetuneConfig:
    return config.tune or TuneConfig()


def _batches(tune: FinetuneConfig) -> tuple[int, int]:
    """Return (examples of one forward pass, passes of a step)."""
    return min(tune.device_batch_size, tune.batch_size), max(1, tune.batch_size // tune.device_batch_size)


def _base(config: Config) -> str:
    """Return the base model as it can be named from another folder."""
    there = Path(config.model.base)
    return str(there.resolve()) if there.is_dir() else config.model.base


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
