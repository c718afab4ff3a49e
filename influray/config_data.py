"""The `data` section of a config: pool, targets, and what files call the keys of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from influray.config_base import Name, Positive, Section, SparseSection

Key = Annotated[str, Field(min_length=1)] | None
Role = Literal["system", "developer", "user", "assistant", "tool"]


def _many(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class ColumnsConfig(SparseSection):
    """What the files call the keys of a record. A dotted name goes into objects (`meta.uuid`)."""

    messages: Key = None
    prompt: Key = None
    completion: Key = None
    instruction: Key = None
    input: Key = None
    output: Key = None
    system: Key = None
    history: Key = None
    reasoning: Key = None  # of the answer of a pair: its `reasoning_content`
    tools: Key = None
    chat_template_kwargs: Key = None
    id: Key = None
    source: Key = None
    answer: Key = None
    role: Key = None  # of a message, as are the next two
    content: Key = None
    train: Key = None
    roles: dict[Role, tuple[str, ...]] = Field(default_factory=dict)  # role -> names of speakers that stand for it
    ignore: tuple[str, ...] = ()  # keys that are not looked at; `messages.NAME` is a key of every message

    @field_validator("ignore", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _many(value)

    @field_validator("roles", mode="before")
    @classmethod
    def _one_or_many_names(cls, value: Any) -> Any:
        return {role: _many(names) for role, names in value.items()} if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _one_form(self) -> ColumnsConfig:
        pair = [name for name in ("prompt", "completion", "instruction", "output") if getattr(self, name)]
        if self.messages and pair:
            raise ValueError(f"messages and {pair[0]} name two forms of a conversation; map one of them")
        for a, b in (("prompt", "instruction"), ("completion", "output")):
            if getattr(self, a) and getattr(self, b):
                raise ValueError(f"{a} and {b} name two keys for one side of an exchange; map one of them")
        named = self.keys()
        for name, key in named.items():
            if key in self.ignore:
                raise ValueError(f"{name}: {key!r} is named under ignore too")
        speakers = [speaker for names in self.roles.values() for speaker in names]
        twice = sorted({speaker for speaker in speakers if speakers.count(speaker) > 1})
        if twice:
            raise ValueError(f"roles: the speaker {twice[0]!r} stands for two roles")
        return self

    def keys(self) -> dict[str, str]:
        """Return name -> the key that files have for it, of those that are set."""
        names = (name for name in type(self).model_fields if name not in ("roles", "ignore"))
        return {name: key for name in names if (key := getattr(self, name)) is not None}

    def over(self, others: ColumnsConfig) -> ColumnsConfig:
        """Return these columns with what they leave open taken from `others`; keys to ignore add up."""
        mine = self.model_dump()
        form = {"messages", "prompt", "completion", "instruction", "input", "output"}
        theirs = others.model_dump()
        if form & set(mine):
            theirs = {name: key for name, key in theirs.items() if name not in form}
        ignore = tuple(dict.fromkeys((*others.ignore, *self.ignore)))
        ignore = tuple(key for key in ignore if key not in self.keys().values())
        merged = {**theirs, **mine, **({"ignore": ignore} if ignore else {})}
        if others.roles or self.roles:
            merged["roles"] = {**others.roles, **self.roles}
        return ColumnsConfig.model_validate(merged)


class EntryConfig(SparseSection):
    """Files that are read alike."""

    files: tuple[str, ...] = Field(min_length=1)
    columns: ColumnsConfig = ColumnsConfig()  # over data.columns
    source: str | None = Field(default=None, min_length=1)  # of all its rows, whatever they say
    limit: Positive | None = None  # the first so many usable rows
    ids: Literal["global", "scoped"] = "global"  # scoped: the file's name goes before an id (files that number from 0)
    weight_of_ids: str | None = Field(default=None, min_length=1)  # a file of {id, weight}: 0 leaves a row out

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _many(value)


def _kind(value: Any) -> str:
    return "<entry>" if isinstance(value, Mapping | EntryConfig) else "<path>"


Entry = Annotated[Annotated[str, Tag("<path>")] | Annotated[EntryConfig, Tag("<entry>")], Discriminator(_kind)]
Entries = tuple[Entry, ...]


def _entries(value: Any) -> Any:
    return (value,) if isinstance(value, str | Mapping | EntryConfig) else value


class TargetConfig(Section):
    """One task."""

    files: Entries = Field(min_length=1)  # as data.pool
    limit: Positive | None = None  # the first so many usable rows
    test: Entries = ()  # held-out records for `influray evaluate`; empty = evaluate on nothing
    test_limit: Positive | None = None
    columns: ColumnsConfig = ColumnsConfig()  # over data.columns
    expected_sources: tuple[str, ...] = ()  # pool sources that should rank high: the report's known-answer check
    # Protect, avoid: no row is chosen for the task, and the chosen ones must do it no harm, or no good, on the whole
    role: Literal["seek", "protect", "avoid"] = "seek"

    @field_validator("files", "test", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _entries(value)

    @field_validator("expected_sources", mode="before")
    @classmethod
    def _one_or_many_names(cls, value: Any) -> Any:
        return _many(value)


class DataConfig(Section):
    """Pool and targets."""

    root: str = "."  # relative paths start here
    pool: Entries = Field(min_length=1)  # files, folders or hf:// ids, or {files, columns, source, limit, ids, ..}
    targets: dict[Name, TargetConfig] = Field(min_length=1)  # task -> its examples
    columns: ColumnsConfig = ColumnsConfig()  # of all files; docs/data.md lists what is read without
    max_tokens: Annotated[int, Field(ge=8)] = 2048
    max_bad_fraction: float = Field(default=0.01, ge=0, le=1)  # of a split's rows, before the run fails
    max_line_bytes: Positive = 16 * 2**20
    max_file_bytes: Positive = 2**36  # of one file, decompressed: some 40 million conversations
    target_end_token: bool = True  # False = the end-of-turn token is not trained in targets, as LESS has it

    @field_validator("pool", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return _entries(value)

    @property
    def roles(self) -> dict[str, str]:
        """Task -> its role, of the tasks that are not sought."""
        return {task: target.role for task, target in self.targets.items() if target.role != "seek"}

    @model_validator(mode="after")
    def _one_sought(self) -> DataConfig:
        if len(self.roles) == len(self.targets):
            raise ValueError(
                "targets: no task is sought, so that no row is worth more than another; let one have role seek"
            )
        tested = {target.role for target in self.targets.values() if target.test}
        if tested and "seek" not in tested:
            raise ValueError(
                "targets: only tasks to protect or to avoid have a `test`, and results are judged on those that are "
                "sought; name the test records of one of these too"
            )
        return self

    @field_validator("targets", mode="before")
    @classmethod
    def _short_targets(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: {"files": v} if isinstance(v, str | list | tuple) else v for k, v in value.items()}
        return value
