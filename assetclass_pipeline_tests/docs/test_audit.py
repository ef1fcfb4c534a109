"""The page about the audit log names every action there is.

Belongs here: that nothing is missing. Does not: what is said of each.
"""

import re
from pathlib import Path

import pytest

from assetclass_pipeline import engine
from assetclass_pipeline.model.audit import Action

PAGE = Path(__file__).parents[2] / "docs" / "audit.md"
# What becomes of a backup is no member of Action.
REMEMBERED = re.compile(r'\bremember\(\s*cursor,\s*[\w.]+,\s*"([a-z_]+)"')


def actions() -> list[str]:
    modules = sorted(Path(str(engine.__file__)).parent.glob("*.py"))
    texts = [module.read_text(encoding="utf-8") for module in modules]
    return sorted({*Action, *(name for text in texts for name in REMEMBERED.findall(text))})


@pytest.mark.parametrize("action", actions())
def test_every_action_is_explained(action: str) -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    assert any(f"`{action}`" in row.split("|")[1] for row in rows)


def test_actions_are_found() -> None:
    assert {"claim_operation", "backup_dropped", "archive_removed"} <= {*actions()}
