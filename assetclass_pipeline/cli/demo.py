"""`assetclass demo`: load real data, correct them through Dagster, tell the story.

Belongs here: the order of steps, and refusing where something else is at work. Does not: the words
of the story (demo_story), the data (package demo).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from filelock import FileLock, Timeout
from rich.console import Console

from assetclass_pipeline.cli import presentation
from assetclass_pipeline.cli.demo_story import Story, loaded_line, tell
from assetclass_pipeline.cli.exit_status import INTERRUPTED
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import connect, open_database
from assetclass_pipeline.database.indexes import ensure_indexes
from assetclass_pipeline.database.market_tables import inspect_market_tables
from assetclass_pipeline.demo.clearing import clear_earlier_demos
from assetclass_pipeline.demo.load import LoadedDemo, load_demo
from assetclass_pipeline.demo.sources import fetch_sources
from assetclass_pipeline.engine.analysis import analyse
from assetclass_pipeline.engine.claiming import refuse_while_active
from assetclass_pipeline.engine.preview import preview
from assetclass_pipeline.engine.reference import check_reference
from assetclass_pipeline.engine.validation import validate
from assetclass_pipeline.errors import CorrectionFailedError, ServicesError
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.settings import Settings, load_settings

if TYPE_CHECKING:
    from assetclass_pipeline.cli.operation_run import OperationRun

# The guide's advice for more than 100,000 records.
_OPTIONS = CorrectionOptions(batch_size=5000)
_OVERWRITING = CorrectionOptions(
    only_process_null_asset_class=False, overwrite_existing_values=True
)
_ALL_SYMBOLS = 1000

AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON document on standard output, nothing else.")
]


def demo(
    load_only: Annotated[
        bool, typer.Option("--load-only", help="Load the data and stop; nothing is corrected.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Correct real market data and tell the story.

    It takes public price data, loads them into the embedded PostgreSQL (or an empty database that
    ASSETCLASS_DATABASE_URL names), corrects them through Dagster, and begins anew each time.
    """
    began = time.monotonic()
    settings = load_settings()
    _refuse_while_up(settings)
    steps = _Steps(presentation.aside())
    with open_database(settings) as dsn:
        with steps.shown():
            loaded = _load(dsn, settings, steps)
        if load_only:
            _print_loaded(loaded, as_json=as_json)
            return
        story = _correct(dsn, settings, loaded, steps, began)
    if as_json:
        presentation.print_document(_document(story))
    else:
        tell(presentation.for_people(), story)


class _Steps:
    """What is being done: a spinner that vanishes, or lines where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._status = console.status("Starting")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the steps until the context ends."""
        if not self.console.is_terminal:
            yield
            return
        with self._status:
            yield

    def say(self, line: str) -> None:
        """The next step."""
        if self.console.is_terminal:
            self._status.update(line)
        else:
            self.console.print(line, soft_wrap=True)


def _refuse_while_up(settings: Settings) -> None:
    lock = settings.home / "up.lock"
    if not lock.exists():
        return
    try:
        with FileLock(lock, fallback_to_soft=False).acquire(timeout=0):
            return
    except Timeout:
        raise ServicesError(
            f"`assetclass up` is running on {settings.home}, and the demo would take its tables "
            "and its history away. Stop it with Ctrl-C there, or give the demo a directory of its "
            "own (ASSETCLASS_HOME), then try again."
        ) from None


def _load(dsn: str, settings: Settings, steps: _Steps) -> LoadedDemo:
    _refuse_while_active(dsn, settings)
    sources = fetch_sources(settings.home / "demo_data", report=steps.say)
    loaded = load_demo(dsn, settings, sources, report=steps.say)
    steps.say("Clearing what earlier demos left")
    clear_earlier_demos(dsn, settings)
    return loaded


def _refuse_while_active(dsn: str, settings: Settings) -> None:
    if schema.status(dsn, settings).at_head:
        with connect(dsn, settings, purpose="demo") as connection:
            refuse_while_active(connection, settings)


def _correct(
    dsn: str, settings: Settings, loaded: LoadedDemo, steps: _Steps, began: float
) -> Story:
    with steps.shown():
        steps.say("Building the indexes that the pipeline wants")
        ensure_indexes(dsn, settings, lambda _: None)
        steps.say("Measuring the damage")
        with connect(dsn, settings, purpose="demo") as connection:
            tables = inspect_market_tables(connection, settings, for_writing=True)
            before = analyse(connection, tables, settings, worst=_ALL_SYMBOLS)
            reference = check_reference(connection, tables, settings)
        steps.say("Starting Dagster")
        # Here, not above: Dagster takes seconds to import, in which this step should be seen.
        from assetclass_pipeline.cli.operation_run import run_correction
    run = run_correction(dsn, settings, _OPTIONS, reason="assetclass demo")
    _require_success(run)
    with steps.shown(), connect(dsn, settings, purpose="demo") as connection:
        steps.say("Validating")
        validation = validate(connection, tables, settings)
        after = analyse(connection, tables, settings, worst=_ALL_SYMBOLS)
        mismatches = preview(connection, tables, settings, _OVERWRITING).symbols
    return Story(
        settings=settings,
        loaded=loaded,
        before=before,
        reference=reference,
        run=run,
        validation=validation,
        after=after,
        mismatches=[change for change in mismatches if change.from_],
        dsn=dsn,
        seconds=time.monotonic() - began,
    )


def _require_success(run: "OperationRun") -> None:
    if run.cancelled:
        presentation.aside().print(
            "Stopped between two batches. `assetclass demo` begins anew.", style="yellow"
        )
        raise typer.Exit(INTERRUPTED)
    if not run.succeeded or run.operation is None:
        raise CorrectionFailedError(
            f"Dagster run {run.run_id} failed: {run.failure}. `assetclass up` shows its log."
        )


def _print_loaded(loaded: LoadedDemo, *, as_json: bool) -> None:
    if as_json:
        presentation.print_document({"loaded": _loaded_document(loaded)})
        return
    console = presentation.for_people()
    console.print(loaded_line(loaded))
    console.print("`assetclass analyze` measures the damage, `assetclass execute` corrects it.")


def _loaded_document(loaded: LoadedDemo) -> dict[str, object]:
    return {
        "symbols": loaded.symbols,
        "bars": loaded.bars,
        "first": loaded.first.isoformat(),
        "last": loaded.last.isoformat(),
        "seconds": round(loaded.seconds, 3),
    }


def _document(story: Story) -> dict[str, object]:
    return {
        "loaded": _loaded_document(story.loaded),
        "before": presentation.document(story.before),
        "reference": presentation.document(story.reference),
        "operation": presentation.document(story.operation),
        "checks": [asdict(check) for check in story.run.checks],
        "validation": presentation.document(story.validation),
        "seconds": round(story.seconds, 3),
    }
