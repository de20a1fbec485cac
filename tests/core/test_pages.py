"""The explanation pages say what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.core.pages import PAGES, rendered, situations

from tidegate.core.planner import Plan


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<!-- generated:" in text
    assert rendered(text) == text, "run: python -m tests.core.pages"


def test_there_are_seven_situations_and_each_decides_otherwise() -> None:
    told = situations()
    assert len(told) == 7
    assert len({lines[0] for _, lines in told} | {lines[2] for _, lines in told}) > 6
    assert Plan.explain.__doc__
