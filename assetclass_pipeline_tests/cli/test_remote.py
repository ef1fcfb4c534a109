"""Commands with `--api`: the same output and exit status as beside the database, over HTTP."""

import json
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from assetclass_pipeline.cli.main import COMMANDS, run
from assetclass_pipeline.cli.pipeline import Undo
from assetclass_pipeline.cli.remote import ONLY_HERE, OVER_THE_API, Remote, to_the_front
from assetclass_pipeline.cli.remote_pipeline import open_remote
from assetclass_pipeline.database.connections import transaction
from assetclass_pipeline.engine.control import ask_to_cancel
from assetclass_pipeline.engine.correction import CorrectionRequest, correct
from assetclass_pipeline.engine.operations import active_id, get_operation
from assetclass_pipeline.errors import InvalidOptionsError
from assetclass_pipeline.model.alert import AlertType, Finding
from assetclass_pipeline.model.operation import Operation, Status
from assetclass_pipeline.model.options import CorrectionOptions
from assetclass_pipeline.model.rollback import RollbackOptions
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.monitoring.alert_store import judge
from assetclass_pipeline_tests.api.service import Service, make_token, serving, wait_until
from assetclass_pipeline_tests.api.test_operations import take_up
from assetclass_pipeline_tests.cli.command import LONGEST, Command, Finished
from assetclass_pipeline_tests.market import Bar, Market, open_market

NOWHERE = "postgresql://u@127.0.0.1:1/nowhere"
# What two answers to the same question need not have in common.
VARYING = {
    "analysisDurationSeconds",
    "checkedAt",
    "effort",
    "estimatedSeconds",
    "generatedAt",
    "latencyMs",
    "oldestAgeSeconds",
    "seconds",
    # Of what was rehearsed; more where it reaches the next page of the log.
    "walBytes",
}
# And free disk, which whatever runs beside this test uses.
TIME = re.compile(r"\d+(\.\d+)? (ms|s|min|[KMG]iB)\b|(?<= well )\d+")


@dataclass
class Terminal:
    """Commands in this process, beside the database or behind the API."""

    url: str
    token_file: Path
    dsn: str
    capture: pytest.CaptureFixture[str]
    patch: pytest.MonkeyPatch

    def here(self, *arguments: str) -> Finished:
        self.patch.setenv("ASSETCLASS_DATABASE_URL", self.dsn)
        return self._run(*arguments)

    def there(self, *arguments: str) -> Finished:
        # Whoever opened a database now would be told that nobody listens.
        self.patch.setenv("ASSETCLASS_DATABASE_URL", NOWHERE)
        return self._run(*arguments, "--api", self.url, "--token-file", str(self.token_file))

    def _run(self, *arguments: str) -> Finished:
        self.capture.readouterr()
        status = run([*arguments])
        out, err = self.capture.readouterr()
        return Finished(status, out, err)


@pytest.fixture
def service(market: Market, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    # How long a look at a part may take is no matter of where one looks from.
    monkeypatch.setenv("ASSETCLASS_HEALTH__TIMEOUT", "30")
    # Tests change operations without asking it.
    with serving(market.dsn, api={"status_age": 0}) as running:
        yield running


@pytest.fixture
def token_file(market: Market, tmp_path: Path) -> Path:
    """An administrator's token, as it should be kept."""
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_text(make_token(market.dsn, Role.ADMIN, name="me") + "\n")
    return file


@pytest.fixture
def terminal(
    service: Service,
    token_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Terminal:
    monkeypatch.setattr("assetclass_pipeline.database.embedded.exit_on_termination", lambda: None)
    return Terminal(service.url, token_file, service.dsn, capsys, monkeypatch)


def damaged(market: Market) -> str:
    """Rows of every kind, and a correction that has ended; its correctionId."""
    market.list_symbols(("AAPL", "STOCK"), ("MSFT", "STOCK"), ("X", "A"), ("X", "B"), ("Y", None))
    bars = [Bar(1, "AAPL"), Bar(2, "AAPL", asset_class=""), Bar(3, "MSFT", asset_class="BOND")]
    market.add([*bars, Bar(4, "[bold]GONE[/bold]"), Bar(5, "X"), Bar(6, "Y")])
    request = CorrectionRequest(str(uuid4()), CorrectionOptions(), requested_by="ada")
    correct(market.dsn, market.settings, request)
    market.add([Bar(7, "AAPL"), Bar(8, "MSFT")])
    return request.correction_id


def opened_alert(market: Market) -> int:
    finding = Finding("orphans", AlertType.HIGH_ORPHANED_RECORDS, True, "12 % are orphaned")
    with transaction(market.connection, market.settings) as cursor:
        [alert] = judge(cursor, market.settings, [finding])
    return alert.id


def timeless(found: Any) -> Any:
    if isinstance(found, dict):
        return {name: timeless(value) for name, value in found.items() if name not in VARYING}
    return [timeless(value) for value in found] if isinstance(found, list) else _text(found)


def _text(found: Any) -> Any:
    # A shorter time leaves more room for the words behind it.
    return TIME.sub("TIME", " ".join(found.split())) if isinstance(found, str) else found


def test_what_only_looks_prints_the_same(terminal: Terminal, market: Market) -> None:
    correction = damaged(market)
    opened_alert(market)
    looks = [
        (["analyze"], 0),
        (["preview", "--batch-size", "5", "--overwrite-existing"], 0),
        (["validate"], 5),
        (["status"], 0),
        (["status", "--include-all"], 0),
        (["status", correction], 0),
        (["metrics"], 0),
        (["alerts", "list", "--all", "--limit", "7"], 0),
        (["audit", "row", "1", "--symbol", "AAPL"], 0),
        # No daemon of Dagster's runs beside this test.
        (["health"], 1),
        (["status", str(uuid4())], 4),
        (["status", ".."], 4),
        (["audit", "row", "-5"], 2),
        (["audit", "row", "4711"], 4),
        (["alerts", "ack", "4711"], 4),
        (["alerts", "ack", "0"], 4),
        (["alerts", "ack", "99999999999999999999"], 4),
        (["pause"], 4),
        (["pause", ""], 4),
        (["cancel", ""], 4),
        (["resume", ""], 4),
        (["rollback", "", "--reason", "why"], 4),
        (["resume", str(uuid4())], 4),
        (["rollback", str(uuid4()), "--reason", "why"], 4),
        (["preview", "--batch-size", "0"], 2),
    ]
    for arguments, status in looks:
        for form in ([], ["--json"]):
            near, far = terminal.here(*arguments, *form), terminal.there(*arguments, *form)
            assert (near.status, far.status) == (status, status), (arguments, far.explain())
            if form and status != 2:
                assert timeless(far.document) == timeless(near.document), arguments
            assert _text(far.err) == _text(near.err), arguments
            if not form:
                assert _text(far.out) == _text(near.out), arguments
    text = terminal.there("metrics", "--prometheus").out
    assert "\nassetclass_operations_completed_total" in text
    assert terminal.there("metrics", "--prometheus", "--json").status == 2


def test_health_without_a_token_says_that_it_knows_no_more(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    # No daemon of Dagster's runs beside this test.
    assert run(["health", "--api", service.url]) == 1
    assert capsys.readouterr().out == "Something fails; --token-file shows what.\n"


def test_a_key_may_hold_slashes(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_market(database_url, id_type="text") as market:
        market.list_symbols(("BTC/USD", "CRYPTO")).add([Bar("BTC/USD/1", "BTC/USD")])
        correct(market.dsn, market.settings, CorrectionRequest(str(uuid4()), CorrectionOptions()))
        file = tmp_path / "token"
        file.touch(0o600)
        file.write_text(make_token(market.dsn))
        with serving(market.dsn) as service:
            flags = ("--api", service.url, "--token-file", str(file), "--json")
            assert run(["audit", "row", "BTC/USD/1", *flags]) == 0
            found = json.loads(capsys.readouterr().out)
            assert (found["id"], found["rows"][0]["now"]["assetClass"]) == ("BTC/USD/1", "CRYPTO")
            assert run(["audit", "row", "BTC/USD", *flags]) == 4


def test_an_alert_is_taken_on(terminal: Terminal, market: Market) -> None:
    number = opened_alert(market)
    taken = terminal.there("alerts", "ack", str(number), "--note", "on it", "--json")
    assert taken.status == 0, taken.explain()
    assert (taken.document["status"], taken.document["acknowledgedBy"]) == (
        "acknowledged",
        "token me",
    )
    shown = terminal.there("alerts", "list")
    assert "token me" in shown.out


@contextmanager
def carried_out(
    market: Market, work: Callable[[], Operation] | None = None
) -> Iterator[Future[Operation]]:
    """What is asked for within is done as soon as it is asked for, as the daemon's run would."""

    def wait_and_do() -> Operation:
        wait_until(lambda: active_id(market.connection, market.settings) is not None)
        return take_up(market) if work is None else work()

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(wait_and_do)


def test_execute_and_rollback_are_followed_to_their_end(terminal: Terminal, market: Market) -> None:
    market.fill(60)
    with carried_out(market) as done:
        asked = ("execute", "--json", "--batch-size", "10", "--reason", "why", "--ticket", "T-1")
        finished = terminal.there(*asked)
    assert finished.status == 0, finished.explain()
    correction = finished.document
    assert correction["correctionId"] == done.result().correction_id
    assert (correction["status"], correction["recordsCorrected"]) == ("succeeded", 60)
    assert (correction["options"]["batchSize"], correction["reason"]) == (10, "why")
    assert (correction["requestedBy"], correction["ticket"]) == ("token me", "T-1")
    assert timeless(terminal.here("status", correction["correctionId"], "--json").document) == (
        timeless(correction)
    )
    assert f"{correction['correctionId']} is asked for" in finished.err

    with carried_out(market):
        undone = terminal.there("rollback", correction["correctionId"], "--reason", "wrong feed")
    assert undone.status == 0, undone.explain()
    assert "60 restored" in undone.out
    again = terminal.there("rollback", correction["correctionId"], "--reason", "x", "--json")
    assert (again.status, again.document["errorCode"]) == (1, "ALREADY_ROLLED_BACK")
    assert set(market.classes().values()) == {None}


def test_what_would_be_overwritten_is_looked_for_by_a_dry_run(
    terminal: Terminal, market: Market
) -> None:
    correction = damaged(market)
    market.execute("UPDATE market_data SET asset_class = 'BOND' WHERE id = 1")
    undo = Undo(correction, RollbackOptions(take_backup_value=True), "why")
    remote = Remote(terminal.url, terminal.token_file, "")
    with open_remote(remote) as pipeline, carried_out(market):
        found = pipeline.overwritten_by(undo)
    assert (found.dry_run, found.records_conflicting) == (True, 1)
    assert market.classes()[1] == "BOND"
    blunt = ("rollback", correction, "--reason", "why", "--take-backup-value")
    # Here is no terminal to ask on.
    assert terminal.there(*blunt).status == 2
    with carried_out(market):
        assert terminal.there(*blunt, "--yes").status == 0
    assert market.classes()[1] is None


def test_another_operation_is_active(terminal: Terminal, service: Service, market: Market) -> None:
    market.fill(10)
    with service.client(terminal.token_file.read_text().strip()) as client:
        active = client.post("execute", json={}).json()["data"]["correctionId"]
    for command in (["execute"], ["execute", "--dry-run"]):
        far, near = terminal.there(*command, "--json"), terminal.here(*command, "--json")
        assert (far.status, near.status) == (3, 3)
        assert far.document == near.document
        assert far.document["correctionId"] == active
    assert terminal.there("cancel").out == f"Operation {active}: It stops between two batches.\n"


def test_what_would_do_harm_is_refused_alike(terminal: Terminal, market: Market) -> None:
    market.fill(10).execute("CREATE PUBLICATION everything FOR ALL TABLES")
    far, near = terminal.there("execute", "--json"), terminal.here("execute", "--json")
    assert (far.status, near.status) == (1, 1)
    assert far.document == near.document
    assert far.document["errorCode"] == "PREFLIGHT_REFUSED"


def test_what_is_cancelled_meanwhile_ends_as_a_failure_and_is_resumed(
    terminal: Terminal, market: Market
) -> None:
    market.fill(30)

    def cancel() -> Operation:
        asked = str(active_id(market.connection, market.settings))
        return ask_to_cancel(market.connection, market.settings, asked, by="eve")

    with carried_out(market, cancel) as cancelled:
        finished = terminal.there("execute")
    assert finished.status == 1, finished.explain()
    correction_id = cancelled.result().correction_id
    assert finished.err.splitlines()[-1].startswith(f"Error: Operation {correction_id} has no run")
    assert f"correction {correction_id} cancelled" in finished.out

    with carried_out(market):
        resumed = terminal.there("resume", correction_id, "--json")
    assert resumed.status == 0, resumed.explain()
    assert (resumed.document["status"], resumed.document["recordsCorrected"]) == ("succeeded", 30)


def test_ctrl_c_leaves_the_operation_running_and_says_how_to_end_it(
    service: Service, token_file: Path, market: Market, tmp_path: Path
) -> None:
    market.fill(10)
    home = tmp_path / "home"
    assetclass = Command({"ASSETCLASS_HOME": str(home), "ASSETCLASS_DATABASE_URL": NOWHERE})
    flags = ("--api", service.url, "--token-file", str(token_file))
    with assetclass.start("execute", "--json", *flags) as process:
        try:
            assert process.stderr is not None
            # It says so when it begins to follow, and when it has seen it.
            said = [process.stderr.readline() for _ in range(2)]
            assert ("is asked for" in said[0], said[1]) == (True, "starting\n"), said
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=LONGEST)
        finally:
            process.kill()
    assert process.returncode == 130, f"{out}\n{err}"
    seen = json.loads(out)
    assert seen["status"] == "requested"
    cancel = f"assetclass cancel {seen['correctionId']} {' '.join(flags)}"
    assert f"goes on without this command. `{cancel}` stops it" in err
    assert not home.exists()
    left = get_operation(market.connection, market.settings, seen["correctionId"])
    assert left.status is Status.REQUESTED
    stopped = assetclass(*cancel.split()[1:], "--json")
    assert stopped.document["status"] == "cancelled", stopped.explain()


def test_an_api_that_is_away_or_refuses(terminal: Terminal, service: Service) -> None:
    away = run(["status", "--api", "http://127.0.0.1:1", "--json"])
    assert away == 1
    document = json.loads(terminal.capture.readouterr().out)
    assert document["errorCode"] == "API_UNAVAILABLE"
    assert "http://127.0.0.1:1" in document["message"]
    terminal.token_file.write_text(make_token(service.dsn, Role.VIEWER, name="viewer"))
    refused = terminal.there("execute")
    assert refused.status == 1
    assert "needs the role operator" in refused.err
    terminal.token_file.write_text("act_wrong")
    refused = terminal.there("status", "--json")
    assert (refused.status, refused.document["errorCode"]) == (1, "UNAUTHORIZED")


def test_the_settings_choose_it_too(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ASSETCLASS_API_URL", terminal.url)
    monkeypatch.setenv("ASSETCLASS_API_TOKEN_FILE", str(terminal.token_file))
    monkeypatch.setenv("ASSETCLASS_DATABASE_URL", NOWHERE)
    assert run(["status"]) == 0
    # The token of one API is not shown to another one.
    assert run(["status", "--api", f"{terminal.url}/", "--json"]) == 1
    assert '"UNAUTHORIZED"' in terminal.capture.readouterr().out
    assert run(["up"]) == 2
    assert "Unset ASSETCLASS_API_URL" in terminal.capture.readouterr().err
    assert run(["up", "--help"]) == 0


@pytest.mark.parametrize("command", sorted(ONLY_HERE))
def test_what_has_no_call_is_refused_with_the_reason(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ASSETCLASS_DATABASE_URL", NOWHERE)
    assert run([command, "--api", "http://127.0.0.1:1"]) == 2
    err = capsys.readouterr().err
    assert f"`assetclass {command}` cannot work through an API: {ONLY_HERE[command]}" in err
    assert "Leave --api out" in err


@pytest.mark.parametrize(
    "words",
    ["alerts show 1", "alerts maintenance list", "alerts test", "audit log", "audit verify"],
)
def test_of_a_group_only_some_have_a_call(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    group, command, *_ = words.split()
    assert run(["--api=http://127.0.0.1:1", *words.split(), "--json"]) == 2
    document = json.loads(capsys.readouterr().out)
    assert document["errorCode"] == "INVALID_OPTIONS"
    assert f"`assetclass {group} {command}` cannot work" in document["message"]


def test_of_every_command_it_is_said_whether_it_has_a_call() -> None:
    assert OVER_THE_API.keys() | ONLY_HERE.keys() == COMMANDS.keys()
    assert not OVER_THE_API.keys() & ONLY_HERE.keys()


def test_the_flags_stand_anywhere() -> None:
    front = ["--api", "U", "--token-file", "F"]
    for given in (
        "--api U --token-file F status --json",
        "status --api U --json --token-file F",
        "status --json --api U --token-file F",
    ):
        assert to_the_front(given.split()) == [*front, "status", "--json"]
    assert to_the_front(["status", "--api=U"]) == ["--api=U", "status"]
    assert to_the_front(["audit", "row", "--", "--api"]) == ["audit", "row", "--", "--api"]


@pytest.mark.parametrize("given", [["status", "--api"], ["--api", "--json", "status"]])
def test_a_flag_without_a_value_is_a_usage_error(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidOptionsError):
        to_the_front(given)
    assert run(given) == 2
    assert "--api needs an address" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--token-file", "t"], "--token-file needs --api URL"),
        (["--api", "ftp://host"], "only http and https"),
        (["--api", "http://h", "--token-file", "/nowhere/t"], "No such file"),
    ],
)
def test_what_cannot_be_used_is_named(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o777])
def test_a_token_that_others_may_read_is_refused(
    mode: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "my token"
    file.write_text("act_secret")
    file.chmod(mode)
    assert run(["status", "--api", "http://127.0.0.1:1", "--token-file", str(file)]) == 2
    err = capsys.readouterr().err
    assert f"`chmod 600 '{file}'`" in err
    assert "act_secret" not in err


@pytest.mark.parametrize("content", [b"", b" \n", b"two words\n", b"\xff\xfe", b"act_\x00"])
def test_a_file_that_holds_no_token_is_refused(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "token"
    file.touch(0o600)
    file.write_bytes(content)
    assert run(["status", "--api", "http://127.0.0.1:1", "--token-file", str(file)]) == 2
    assert capsys.readouterr().err.startswith("Error: ")
