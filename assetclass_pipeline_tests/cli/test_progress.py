"""The live progress of a correction: one bar and one line, also where there is much to say."""

import io
import re
from uuid import uuid4

import pytest
from rich.console import Console

from assetclass_pipeline.cli.progress import _Bar, _Lines
from assetclass_pipeline.engine.correction import CorrectionRequest, plan
from assetclass_pipeline.model.operation import Operation, OperationPacing, Phase, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline_tests.market import Market

LAG = "Standby berlin is 12 s behind; the limit is 10 s. "


@pytest.fixture
def operation(market: Market) -> Operation:
    """One that corrects, as far as a reader can tell."""
    request = CorrectionRequest(str(uuid4()), CorrectionOptions())
    planned = plan(market.fill(50).dsn, market.settings, request, park=True)
    pacing = OperationPacing(batch_size=1500, workers=2)
    update = {"phase": Phase.CORRECTING, "status": Status.RUNNING, "pacing": pacing}
    return planned.model_copy(update=update)


def shown_as_bar(*states: Operation) -> str:
    """The last thing that the terminal shows, without colours and movements."""
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    bar = _Bar(console)
    for state in states:
        bar.show(state)
    console.print(bar._progress.get_renderable())
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).rstrip()


def test_beneath_the_bar_stands_how_fast_it_goes(operation: Operation) -> None:
    bar, line = shown_as_bar(operation).splitlines()
    assert bar.startswith("correcting ")
    assert "0 of 50 rows" in bar
    assert line.rstrip() == "batches of 1,500 x 2"


def test_while_it_waits_the_reason_stands_there_cut_to_one_line(operation: Operation) -> None:
    held = operation.model_copy(update={"throttle": [LAG, "And more. " * 30]})
    _, line = shown_as_bar(operation, held).splitlines()
    assert line.startswith("waits: Standby berlin is 12 s behind")
    assert (len(line), line[-1]) == (100, "…")
    _, line = shown_as_bar(held, operation).splitlines()
    assert line.rstrip() == "batches of 1,500 x 2"


def test_a_pause_has_a_word_of_its_own(operation: Operation) -> None:
    paused = operation.model_copy(update={"status": Status.PAUSED, "throttle": ["Paused by anna."]})
    bar, line = shown_as_bar(paused).splitlines()
    assert bar.startswith("paused ")
    assert line.rstrip() == "waits: Paused by anna."


def test_a_log_gets_a_line_when_it_begins_or_ends_to_wait(operation: Operation) -> None:
    log = io.StringIO()
    lines = _Lines(Console(file=log, width=100))
    held = operation.model_copy(update={"throttle": [LAG * 5]})
    still_held = operation.model_copy(update={"throttle": [LAG.replace("12", "13")]})
    for state in (operation, operation, held, still_held, operation):
        lines.show(state)
    goes, waits, goes_again = log.getvalue().splitlines()
    assert goes == goes_again == "correcting: 0 of 50 rows, batches of 1,500 x 2"
    assert waits.startswith("correcting: 0 of 50 rows, batches of 1,500 x 2, waits: Standby berlin")
    assert len(waits) <= 100
