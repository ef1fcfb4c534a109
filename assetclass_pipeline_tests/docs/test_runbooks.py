"""Pages are true: each alert has its runbook; commands, SQL, settings and links exist."""

import importlib
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import psycopg
import pytest
import typer
from psycopg.types.json import Jsonb
from typer.main import get_command, get_group

from assetclass_pipeline.api.refusals import ACTION
from assetclass_pipeline.cli.main import COMMANDS
from assetclass_pipeline.cli.remote import API_FLAG, TOKEN_FILE_FLAG, to_the_front
from assetclass_pipeline.model.alert import AlertType
from assetclass_pipeline.model.audit import Action
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.engine.runs import correct_now
from assetclass_pipeline_tests.market import open_market

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
RUNBOOKS = DOCS / "runbooks"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "deploy/sql/README.md")),
    *sorted(DOCS.rglob("*.md")),
]
# Elsewhere SQL has names in capitals, or makes a role.
PAGES_WITH_SQL = [*sorted(RUNBOOKS.glob("*.md")), DOCS / "health.md"]

_FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_SHELL = ("console", "sh", "bash")
_INDENTED = re.compile(r"^    (assetclass .+)$", re.MULTILINE)
# Also over the end of a line, and with alternatives in a table.
_INLINE = re.compile(r"(?<!`)`(assetclass\s[^`]+)`(?!`)")
_WITHIN = re.compile(r"\$\((assetclass [^)]+)\)")
_LINK = re.compile(r"\]\(([^)]+)\)")
_SETTING = re.compile(r"ASSETCLASS_([A-Z]+(?:_+[A-Z]+)*)")


@dataclass(frozen=True)
class Said:
    """A command in a page."""

    page: str
    line: str

    def __str__(self) -> str:
        return f"{self.page}: {self.line}"


def blocks(page: Path, *languages: str) -> Iterator[str]:
    for name, body in _FENCE.findall(page.read_text(encoding="utf-8")):
        if name in languages:
            yield body


def lines(page: Path) -> Iterator[str]:
    """Every command line of a page, as somebody would type it."""
    text = page.read_text(encoding="utf-8")
    for body in blocks(page, *_SHELL):
        for line in body.splitlines():
            yield line.strip().removeprefix("$ ").removeprefix(".venv/bin/")
    prose = _FENCE.sub("", text)
    yield from _WITHIN.findall(text)
    yield from _INDENTED.findall(prose)
    for said in _INLINE.findall(prose):
        first, *others = " ".join(said.split()).split(" \\| ")
        yield first
        yield from (f"assetclass {first.split()[1]} {other}" for other in others)


def commands() -> Iterator[Said]:
    for page in PAGES:
        for line in lines(page):
            if line.startswith("assetclass "):
                yield Said(str(page.relative_to(ROOT)), line)


def problem(line: str) -> str | None:
    """What the command line of a page would complain of; None when it would run."""
    alone = re.split(r" [|>] |  +#", line)[0].translate({ord("["): "", ord("]"): "", ord("…"): "X"})
    words = to_the_front(shlex.split(alone.replace("...", ""))[1:])
    while words and words[0] in {API_FLAG, TOKEN_FILE_FLAG}:
        del words[:2]
    if not words or "--help" in words:
        return None
    name, *rest = words
    if name not in COMMANDS:
        return f"no command {name}"
    place = COMMANDS[name]
    found = getattr(importlib.import_module(place.module), place.attribute)
    command: Any
    if isinstance(found, typer.Typer):
        command = get_group(found)
        while rest and hasattr(command, "commands"):
            if rest[0] not in command.commands:
                return f"no command {name} {rest[0]}"
            command = command.commands[rest.pop(0)]
    else:
        alone = typer.Typer(add_completion=False)
        alone.command(name)(found)
        command = get_command(alone)
    return problem_of_words(command, rest)


def problem_of_words(command: Any, words: list[str]) -> str | None:
    options = {
        option: parameter
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if option.startswith("-")
    }
    positional = 0
    words = list(words)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            positional += 1
        elif word not in options:
            return f"no option {word}"
        elif not options[word].is_flag:
            if not words:
                return f"{word} needs a value"
            words.pop(0)
    arguments = [parameter for parameter in command.params if parameter.opts[0][0] != "-"]
    needed = sum(parameter.required for parameter in arguments)
    if hasattr(command, "commands") and not words and not positional:
        return None
    if not needed <= positional <= len(arguments):
        return f"{positional} arguments, {needed} to {len(arguments)} are taken"
    return None


@pytest.mark.parametrize("alert_type", AlertType)
def test_every_alert_has_its_page(alert_type: AlertType) -> None:
    page = (RUNBOOKS / alert_type.runbook).read_text(encoding="utf-8")
    assert page.startswith(f"# {alert_type}\n\n**{alert_type.severity.value.capitalize()}")
    for part in ("## Do\n", "## Call\n", "## Do not\n"):
        assert part in page, part
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    row = f"| [{alert_type}]({alert_type.runbook}) | {alert_type.severity.value} |"
    assert row in index


def test_every_page_is_in_the_index() -> None:
    index = (RUNBOOKS / "README.md").read_text(encoding="utf-8")
    for page in RUNBOOKS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name}" in index, page.name


@pytest.mark.parametrize("said", sorted(set(commands()), key=str), ids=str)
def test_every_command_exists(said: Said) -> None:
    # A command may be mentioned without the argument that only its example has.
    complaint = problem(said.line)
    is_mentioned = re.fullmatch(r"assetclass( [a-z-]+)+", said.line) is not None
    assert complaint is None or (complaint.startswith("0 arguments") and is_mentioned), complaint


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("assetclass resume ID", None),
        ("assetclass fly", "no command fly"),
        ("assetclass backups fly", "no command backups fly"),
        ("assetclass status --fast", "no option --fast"),
        ("assetclass rollback ID --reason", "--reason needs a value"),
        ("assetclass backups hold --reason TEXT", "0 arguments, 1 to 1 are taken"),
        ("assetclass status --json | jq .", None),
        ("assetclass alerts list [--all] [--limit N]", None),
        ("assetclass --api URL --token-file F alerts fly", "no command alerts fly"),
        ("assetclass tokens create --name me --role admin > token", None),
    ],
)
def test_the_check_of_commands_checks(line: str, complaint: str | None) -> None:
    assert problem(line) == complaint


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def exists(setting: str) -> bool:
    """Whether a variable sets something, or is the beginning of one that does."""
    kind: Any = Settings
    for name in setting.lower().split("__"):
        models = [kind, *get_args(kind)]
        fields: Mapping[str, Any] = next(
            (m.model_fields for m in models if hasattr(m, "model_fields")), {}
        )
        if name not in fields:
            return False
        kind = fields[name].annotation
    return True


@pytest.mark.parametrize(
    ("setting", "is_one"),
    [
        ("HOME", True),
        ("API__OIDC__ROLES", True),
        ("API", True),
        ("API__OIDC__FLY", False),
        ("FLY", False),
        ("HOME__FLY", False),
    ],
)
def test_the_check_of_settings_checks(setting: str, is_one: bool) -> None:
    assert exists(setting) is is_one


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_setting_exists(page: Path) -> None:
    for setting in _SETTING.findall(page.read_text(encoding="utf-8")):
        assert exists(setting), setting


@pytest.mark.parametrize("found_by", ["the verification", "the drill"])
def test_a_failed_drill_is_found(database_url: str, found_by: str) -> None:
    """The drill tries more than the verification, which may have passed."""
    failed = {"passed": False, "problems": ["it failed"]}
    passed = {"passed": True, "problems": []}
    verification = failed if found_by == "the verification" else {**passed, "drill": failed}
    with open_market(database_url) as market:
        market.fill(20)
        good, bad = correct_now(market, target_symbols=["S1"]), correct_now(market)
        for operation, found in ((good, {**passed, "drill": passed}), (bad, verification)):
            market.execute(
                "UPDATE assetclass.backup SET verification = %s WHERE correction_id = %s",
                values=[Jsonb(found), operation.correction_id],
            )
        (statement,) = blocks(RUNBOOKS / "recovery-drill-failed.md", "sql")
        (row,) = market.connection.execute(statement.encode()).fetchall()
    assert str(row[0]) == bad.correction_id
    assert "it failed" in str(row)


def test_every_statement_runs(database_url: str) -> None:
    with open_market(database_url), psycopg.connect(database_url, autocommit=True) as session:
        session.execute(
            "CREATE TABLE market_data_backup_YYYYMMDD_HHMMSS (id int, asset_class text)"
        )
        ran = 0
        for page in PAGES_WITH_SQL:
            for body in blocks(page, "sql"):
                statement = body.replace("CORRECTION_ID", "11111111-2222-4333-8444-555555555555")
                session.execute(statement.encode())
                ran += 1
        assert ran >= 10


def test_every_action_of_the_audit_log_is_explained() -> None:
    page = (DOCS / "audit.md").read_text(encoding="utf-8")
    recorded = {*Action, ACTION}
    assert not {action for action in recorded if f"`{action}`" not in page}
