"""What every section of a config is made of."""

from __future__ import annotations

import fractions
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from influray.config_messages import takes_boolean
from influray.options import plain

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]  # safe as a folder name
Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


def as_written(share: float) -> fractions.Fraction:
    """Return the number that a share's decimal digits say: in binary 0.29 is less, and 0.29 of 100 rows would be 28."""
    return fractions.Fraction(repr(float(share)))


class Section(BaseModel):
    """A part of the config: frozen, and strict about its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, protected_namespaces=(), allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _of_numpy(cls, given: Any) -> Any:
        return plain(given)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse true and false where neither is meant: as numbers they would count as 1 and 0."""
        found = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(one, bool) for one in found):
            annotation = cls.model_fields[str(info.field_name)].annotation
            if not takes_boolean(annotation):
                raise ValueError("YAML reads on, off, yes, no, true and false as switches; put quotes around text")
        return value


class SparseSection(Section):
    """A section of which only what was set is written."""

    @model_serializer(mode="wrap")
    def _set_only(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain = handler(self)
        return {name: plain[name] for name in type(self).model_fields if name in self.model_fields_set}
