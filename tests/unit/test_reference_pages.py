"""Pages of docs/ that are made from the code are those of this code."""

from __future__ import annotations

import pytest

from influray.config import Config
from jobs.make_reference import DOCS, PAGES, sections


@pytest.mark.parametrize("name", sorted(PAGES))
def test_a_page_is_up_to_date(name):
    assert (DOCS / name).read_text(encoding="utf-8") == PAGES[name](), "run python jobs/make_reference.py"


def test_every_key_of_a_config_stands_there():
    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    for key, model in sections(Config, ""):
        assert f"`{key}`" in page or not key, key
        names = [field.alias or name for name, field in model.model_fields.items()]
        assert all(f"| `{name}` |" in page for name in names), key
