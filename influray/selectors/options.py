"""Options that several selectors share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field

TaskWeights = Mapping[str, Annotated[float, Field(gt=0)]]  # task -> factor
