"""`assetclass health | doctor`: whether all is well, and what to do where it is not.

Belongs here: asking, printing, loading the definitions in a process of their own. Does not: the
questions (monitoring/, defs/dagster_probes.py).
"""

import os
import subprocess
from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from assetclass_pipeline.cli.exit_status import FAILED
from assetclass_pipeline.cli.pipeline import open_pipeline
from assetclass_pipeline.cli.preflight import DEFINITIONS_ONLY
from assetclass_pipeline.cli.presentation import for_people, print_model, section, table
from assetclass_pipeline.cli.supervisor import python_module
from assetclass_pipeline.database.connections import connect, running_database
from assetclass_pipeline.errors import AssetClassError
from assetclass_pipeline.model.health import Health
from assetclass_pipeline.monitoring.doctor import (
    Examination,
    Finding,
    Verdict,
    examine_channels,
    examine_database,
    examine_files,
    examine_settings,
    findings_of,
)
from assetclass_pipeline.settings import Settings, load_settings

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]
_DEFINITIONS = "assetclass_pipeline.definitions"
_LOADING_SECONDS = 120
_VERDICTS = {
    Verdict.TROUBLE: ("trouble", "bold red"),
    Verdict.NOTE: ("note", "yellow"),
    Verdict.FINE: ("fine", "green"),
}


def health(as_json: AsJson = False) -> None:
    """Say whether all is well; exit status 1 when it is not."""
    with open_pipeline() as pipeline:
        found = pipeline.health()
    if as_json:
        print_model(found)
    else:
        show_health(for_people(), found)
    if not found.is_healthy:
        raise typer.Exit(FAILED)


def doctor(as_json: AsJson = False) -> None:
    """Examine everything, and say how to mend what is wrong; exit status 1 when something is."""
    found = Examination.of(_examine(load_settings()))
    if as_json:
        print_model(found)
    else:
        show_examination(for_people(), found)
    if not found.is_healthy:
        raise typer.Exit(FAILED)


def _examine(settings: Settings) -> Iterator[Finding]:
    # Here, not above: `health` through an API does without Dagster.
    from assetclass_pipeline.defs.health import health_of

    yield from findings_of(health_of(settings))
    try:
        dsn = running_database(settings)
        with connect(dsn, settings, purpose="doctor") as connection:
            yield from examine_database(connection, dsn, settings)
    except AssetClassError:
        # The health above has said so, and how to mend it.
        pass
    yield from examine_channels(settings)
    yield _load_definitions()
    yield from examine_files(settings)
    yield from examine_settings(settings)


def _load_definitions() -> Finding:
    """Whether the code that the daemon and the web page load can be loaded."""
    command = python_module("assetclass_pipeline.cli.preflight", _DEFINITIONS, DEFINITIONS_ONLY)
    try:
        finished = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
            text=True,
            timeout=_LOADING_SECONDS,
            check=False,
        )
        said = finished.stdout.strip()
        loaded = finished.returncode == 0
    except subprocess.TimeoutExpired:
        said, loaded = f"The definitions were not loaded after {_LOADING_SECONDS} s.", False
    if loaded:
        return Finding(
            subject="definitions", verdict=Verdict.FINE, message="The definitions can be loaded."
        )
    return Finding(
        subject="definitions",
        verdict=Verdict.TROUBLE,
        message=said or "The definitions cannot be loaded.",
        mend=f"dagster definitions validate -m {_DEFINITIONS} shows the whole traceback",
    )


def show_health(console: Console, found: Health) -> None:
    """The components as a table, and what to do next where one is not well."""
    if not found.components:
        # An API tells callers without a token no more.
        console.print(
            "All is well." if found.is_healthy else "Something fails; --token-file shows what."
        )
        return
    shown = table("component", "", "ms", "what it says", right=("ms",))
    for name, component in found.components.items():
        verdict = Text("well", "green") if component.is_healthy else Text("not well", "bold red")
        shown.add_row(name, verdict, f"{component.latency_ms:.0f}", Text(component.message))
    console.print(shown)
    if not found.is_healthy:
        console.print("\n`assetclass doctor` says how to mend that.")


def show_examination(console: Console, found: Examination) -> None:
    """What is wrong first, each with what to do; then what is fine, in short."""
    bad = [finding for finding in found.findings if finding.verdict is not Verdict.FINE]
    for finding in bad:
        word, style = _VERDICTS[finding.verdict]
        lines = [Text(finding.message)]
        if finding.mend:
            lines.append(Text("mend: ", "dim") + Text(finding.mend))
        console.print(section(f"{finding.subject}", Text(word, style), *lines))
    fine = table("fine", "")
    for finding in found.findings:
        if finding.verdict is Verdict.FINE:
            fine.add_row(finding.subject, Text(finding.message))
    console.print(fine)
    trouble = sum(finding.verdict is Verdict.TROUBLE for finding in found.findings)
    console.print()
    if trouble:
        console.print(Text(f"{trouble} to mend, {len(bad) - trouble} to know of.", "bold red"))
    else:
        console.print(Text(f"Nothing to mend, {len(bad)} to know of.", "green"))
