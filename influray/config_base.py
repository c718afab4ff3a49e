"""What every section of a config is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # safe as a folder name
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A part of the config: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=())


class SparseSection(Section):
    """A section of which only what was set is written."""

    @model_serializer(mode="wrap")
    def _set_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain = handler(self)
        return {name: plain[name] for name in type(self).model_fields if name in self.model_fields_set}
