"""`up`: what it starts, that it keeps it alive, and that nothing of it is ever left behind."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import psutil
import pytest
from dagster._core.definitions.reconstruct import ReconstructableRepository
from dagster._core.execution.api import execute_run
from dagster._core.storage.tags import GRPC_INFO_TAG
from dagster._core.test_utils import create_run_for_test

from assetclass_pipeline.cli import up as up_module
from assetclass_pipeline.cli.api_service import api_service
from assetclass_pipeline.cli.dagster_services import DagsterServices
from assetclass_pipeline.cli.marked_processes import MARK_VARIABLE, marked_processes
from assetclass_pipeline.cli.supervisor import Service, StopSignals, Supervisor
from assetclass_pipeline.cli.up import EmbeddedDatabase
from assetclass_pipeline.database.embedded import EmbeddedServer
from assetclass_pipeline.database.embedded.data_directory import DataDirectory
from assetclass_pipeline.defs.dagster_home import code_server_directory
from assetclass_pipeline.defs.instance import (
    PROCESS_TAG,
    end_dead_runs,
    open_instance,
    process_tags,
    remote_job_origin,
)
from assetclass_pipeline.errors import EmbeddedServerError, ServicesError
from assetclass_pipeline.settings import Settings, load_settings
from assetclass_pipeline_tests.ports import free_port

_TESTS = "assetclass_pipeline_tests.cli"
_DEFINITIONS = f"{_TESTS}.up_definitions"
_BROKEN = f"{_TESTS}.broken_definitions"
_PATIENCE = 90.0

_RUN = """query($id: ID!) { runOrError(runId: $id) { ... on Run {
    status jobName repositoryOrigin { repositoryName repositoryLocationName } } } }"""
_TIMES = "query($id: ID!) { runOrError(runId: $id) { ... on Run { startTime endTime } } }"
_LAUNCH = """mutation($run: ExecutionParams!) { launchRun(executionParams: $run) {
    ... on LaunchRunSuccess { run { runId } } } }"""
_REEXECUTE = """mutation($run: ReexecutionParams) { launchRunReexecution(reexecutionParams: $run) {
    ... on LaunchRunSuccess { run { runId } } } }"""


@dataclass(frozen=True)
class Up:
    """One `up` in a process group of its own, as a terminal would start it."""

    process: subprocess.Popen[str]
    settings: Settings
    said: list[str]

    @property
    def state(self) -> dict[str, str]:
        content = json.loads((self.settings.home / "up.json").read_text())
        assert isinstance(content, dict)
        return content

    def wait_for(self, words: str) -> None:
        wait_until(
            lambda: any(words in line for line in self.said) or self.process.poll() is not None
        )
        assert any(words in line for line in self.said), "".join(self.said)

    def ask(self, query: str, **variables: object) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - the address of our own webserver
            f"{self.state['url']}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=30) as answer:
            content = json.load(answer)
        assert isinstance(content, dict)
        assert "errors" not in content, content
        data = content["data"]
        assert isinstance(data, dict)
        return data

    def run(self, run_id: str) -> dict[str, Any]:
        found = self.ask(_RUN, id=run_id)["runOrError"]
        assert isinstance(found, dict)
        return found

    def wait_for_status(self, run_id: str, status: str) -> None:
        wait_until(lambda: self.run(run_id)["status"] in {status, "SUCCESS", "FAILURE", "CANCELED"})
        assert self.run(run_id)["status"] == status

    def launch(
        self, job: str = "correction_job", config: dict[str, Any] | None = None, **tags: str
    ) -> str:
        selector = {
            "jobName": job,
            "repositoryName": "__repository__",
            "repositoryLocationName": "assetclass_pipeline",
        }
        metadata = {"tags": [{"key": key, "value": value} for key, value in tags.items()]}
        run = {"selector": selector, "runConfigData": config or {}, "executionMetadata": metadata}
        return str(self.ask(_LAUNCH, run=run)["launchRun"]["run"]["runId"])

    def end(self, number: signal.Signals) -> int:
        """Signal the whole process group, as Ctrl-C does; returns the exit status."""
        os.killpg(self.process.pid, number)
        return self.process.wait(_PATIENCE)


def command_line(process: psutil.Process) -> list[str]:
    """Its words; none when it has ended meanwhile."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], bool], patience: float = _PATIENCE) -> None:
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        home=tmp_path / "home",
        webserver_port=free_port(),
        api_port=free_port(),
        database_url=None,
    )


@contextmanager
def up(settings: Settings, definitions: str = _DEFINITIONS) -> Iterator[Up]:
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),  # where the definitions of these tests are
        "ASSETCLASS_HOME": str(settings.home),
        "ASSETCLASS_API_PORT": str(settings.api_port),
        "ASSETCLASS_DAGSTER_DATABASE": settings.dagster_database,
        "http_proxy": "http://127.0.0.1:9",  # must not matter to questions on the loopback
    }
    if settings.database_url is not None:
        environment["ASSETCLASS_DATABASE_URL"] = settings.database_url.get_secret_value()
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", f"{_TESTS}.run_up", definitions, str(settings.webserver_port)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stderr is not None
        reader = threading.Thread(target=said.extend, args=[process.stderr], daemon=True)
        reader.start()
        try:
            yield Up(process, settings, said)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait(_PATIENCE)
            reader.join()


@pytest.fixture(scope="module")
def running(
    postgres_server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Up]:
    settings = load_settings(
        home=tmp_path_factory.mktemp("up"),
        webserver_port=free_port(),
        api_port=free_port(),
        database_url=postgres_server.url(),
        dagster_database="dagster_of_up",
    )
    with up(settings) as started:
        started.wait_for("Ready")
        yield started


@pytest.mark.dagster_services
def test_a_run_of_the_cli_belongs_to_its_job_and_can_be_re_executed_in_the_ui(running: Up) -> None:
    run_id = str(uuid.uuid4())
    with _instance_of(running.settings) as instance:
        job = ReconstructableRepository.for_module(_DEFINITIONS, "defs").get_reconstructable_job(
            "correction_job"
        )
        run = instance.create_run_for_job(
            job.get_definition(),
            run_id=run_id,
            tags=process_tags(run_id),
            remote_job_origin=remote_job_origin("correction_job"),
            job_code_origin=job.get_python_origin(),
        )
        assert execute_run(job, run, instance).success

    assert running.run(run_id) == {
        "status": "SUCCESS",
        "jobName": "correction_job",
        "repositoryOrigin": {
            "repositoryName": "__repository__",
            "repositoryLocationName": "assetclass_pipeline",
        },
    }
    again = running.ask(_REEXECUTE, run={"parentRunId": run_id, "strategy": "ALL_STEPS"})
    running.wait_for_status(again["launchRunReexecution"]["run"]["runId"], "SUCCESS")


@pytest.mark.dagster_services
def test_one_run_at_a_time_uses_the_pool(running: Up) -> None:
    first = running.launch(seconds="5")
    second = running.launch()
    running.wait_for_status(first, "SUCCESS")
    running.wait_for_status(second, "SUCCESS")
    # Whichever was taken from the queue first: they never ran at the same time.
    times = [running.ask(_TIMES, id=run)["runOrError"] for run in (first, second)]
    one, other = sorted(times, key=lambda run: float(run["startTime"]))
    assert one["endTime"] <= other["startTime"]


@pytest.mark.dagster_services
def test_a_second_up_says_where_the_first_one_runs(running: Up) -> None:
    with up(running.settings) as second:
        assert second.process.wait(_PATIENCE) == 1
    assert running.state["url"] in "".join(second.said)
    assert str(running.process.pid) in "".join(second.said)


@pytest.mark.dagster_services
def test_a_service_that_dies_is_started_again(running: Up) -> None:
    [webserver] = [
        process
        for process in marked_processes(running.state["mark"])
        if "dagster_webserver" in command_line(process)
    ]
    webserver.kill()
    running.wait_for("The webserver was ended by SIGKILL; starting it again")
    running.wait_for("The webserver is back")


@pytest.mark.dagster_services
def test_the_api_answers(running: Up) -> None:
    url = f"http://127.0.0.1:{running.settings.api_port}"
    assert any(url in line for line in running.said)
    said = httpx.get(f"{url}/api/etl/asset-class-correction/audit/rows/1", trust_env=False)
    assert (said.status_code, said.json()["errorCode"]) == (401, "UNAUTHORIZED")


@pytest.mark.dagster_services
def test_no_password_stands_in_a_file_or_a_command_line(running: Up) -> None:
    assert running.settings.database_url is not None
    url = running.settings.database_url.get_secret_value()
    password = url.split("@", maxsplit=1)[0].rpartition(":")[2]
    home = running.settings.home
    texts = []
    for path in home.rglob("*"):
        with suppress(FileNotFoundError):  # some come and go
            texts += [path.read_text(errors="replace")] if path.is_file() else []
    commands = [" ".join(command_line(one)) for one in marked_processes(running.state["mark"])]
    assert len([command for command in commands if command]) >= 4
    assert not [text for text in (*texts, *commands, *running.said) if password in text]


@pytest.mark.dagster_services
def test_ctrl_c_ends_runs_services_and_database_and_leaves_no_process(settings: Settings) -> None:
    with up(settings) as started:
        started.wait_for("Ready")
        state, children = started.state, psutil.Process(started.process.pid).children(True)
        # Nobody has a token yet.
        started.wait_for("assetclass tokens create --name NAME --role admin")
        run_id = started.launch(seconds="600")
        started.wait_for_status(run_id, "STARTED")
        children = psutil.Process(started.process.pid).children(recursive=True)
        assert len(marked_processes(state["mark"])) >= 5

        assert started.end(signal.SIGINT) == 0

    _assert_nothing_left(state, children)
    with (
        EmbeddedServer(settings.home / "postgres") as server,
        open_instance(settings, server.url()) as instance,
    ):
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.status is dg.DagsterRunStatus.CANCELED


@pytest.mark.dagster_services
def test_a_killed_up_leaves_no_process(settings: Settings) -> None:
    with up(settings) as started:
        started.wait_for("Starting the code server")
        wait_until(lambda: len(marked_processes(started.state["mark"])) >= 4)
        state, children = started.state, psutil.Process(started.process.pid).children(True)

        started.process.kill()

        wait_until(lambda: not _living(children))
    _assert_nothing_left(state, children)


@pytest.mark.dagster_services
def test_an_embedded_database_that_dies_is_started_again(settings: Settings) -> None:
    with up(settings) as started:
        started.wait_for("Ready")
        state, children = started.state, psutil.Process(started.process.pid).children(True)
        server = EmbeddedServer(settings.home / "postgres")
        url = server.running_url()

        postmaster = DataDirectory(settings.home / "postgres").data / "postmaster.pid"
        psutil.Process(int(postmaster.read_text().splitlines()[0])).kill()

        started.wait_for("The database ended; starting it again")
        started.wait_for("The database is back")
        assert server.running_url() == url
        # Who used the old one goes on with the new one, once each old connection has failed.
        runs: list[str] = []

        def launched() -> bool:
            with suppress(urllib.error.HTTPError):
                runs.append(started.launch())
            return bool(runs)

        wait_until(launched)
        with (
            EmbeddedServer(settings.home / "postgres") as user,
            open_instance(settings, user.url()) as instance,
        ):
            wait_until(lambda: _status_of(instance, runs[0]) is dg.DagsterRunStatus.SUCCESS)
        children += psutil.Process(started.process.pid).children(recursive=True)
        assert started.end(signal.SIGINT) == 0
    _assert_nothing_left(state, children)


@pytest.mark.dagster_services
def test_sigterm_while_starting_leaves_no_process(settings: Settings) -> None:
    with up(settings) as started:
        started.wait_for("Checking the definitions")
        state, children = started.state, psutil.Process(started.process.pid).children(True)
        assert started.end(signal.SIGTERM) == 0
    _assert_nothing_left(state, children)


@pytest.mark.dagster_services
def test_definitions_that_cannot_be_loaded_are_named_and_nothing_is_left(
    settings: Settings,
) -> None:
    with up(settings, _BROKEN) as started:
        started.wait_for("Checking the definitions")
        state, children = started.state, psutil.Process(started.process.pid).children(True)
        assert started.process.wait(_PATIENCE) == 1
    said = "".join(started.said)
    assert "ValueError: no such month: 2024-13" in said
    assert "broken_definitions.py, line 3" in said
    assert "Traceback" not in said
    _assert_nothing_left(state, children)


@pytest.mark.parametrize("service", ["webserver", "api"])
def test_a_busy_port_is_refused_before_anything_starts(settings: Settings, service: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", getattr(settings, f"{service}_port")))
        other.listen()
        with up(settings) as started:
            assert started.process.wait(_PATIENCE) == 1
    assert f"ASSETCLASS_{service.upper()}_PORT" in "".join(started.said)
    assert not (settings.home / "postgres").exists()


def test_leftovers_of_a_killed_up_and_guard_are_ended_by_the_next(settings: Settings) -> None:
    mark = uuid.uuid4().hex
    leftover = _sleeper({MARK_VARIABLE: mark})
    bystander = _sleeper({})
    settings.home.mkdir()
    (settings.home / "up.json").write_text(json.dumps({"mark": mark, "pid": bystander.pid}))
    try:
        with socket.socket() as other:
            other.bind(("127.0.0.1", settings.webserver_port))
            other.listen()
            with up(settings) as started:
                started.process.wait(_PATIENCE)
        assert leftover.wait(_PATIENCE) == -signal.SIGTERM
        assert bystander.poll() is None
    finally:
        for process in (leftover, bystander):
            process.kill()
            process.wait()


@pytest.mark.dagster_services
def test_runs_whose_process_is_gone_are_ended_and_others_are_not(
    postgres_server: EmbeddedServer, settings: Settings
) -> None:
    settings = settings.model_copy(update={"dagster_database": "dagster_dead_runs"})
    with open_instance(settings, postgres_server.url()) as instance:
        mine, gone, foreign, child, served = (_started_run(instance, name) for name in "mgfcs")
        tags = process_tags(mine)
        instance.add_run_tags(mine, tags)
        ended = _sleeper({})
        _, host, _, created = tags[PROCESS_TAG].split(":")
        instance.add_run_tags(gone, {PROCESS_TAG: f"{gone}:{host}:{ended.pid}:{created}"})
        instance.add_run_tags(foreign, {PROCESS_TAG: f"{foreign}:another:1:{created}"})
        # A re-execution inherits the tags of its parent, which says nothing about its own process.
        instance.add_run_tags(child, {PROCESS_TAG: f"{gone}:{host}:{ended.pid}:{created}"})
        directory = code_server_directory()
        address = {"host": "localhost", "socket": str(directory / "code.sock")}
        instance.add_run_tags(served, {GRPC_INFO_TAG: json.dumps(address)})
        ended.kill()
        ended.wait()

        (directory / "code.sock").touch()
        assert end_dead_runs(instance) == [gone]
        shutil.rmtree(directory)
        assert end_dead_runs(instance) == [served]

        statuses = {run.run_id: run.status for run in instance.get_runs()}
        assert statuses[gone] is dg.DagsterRunStatus.FAILURE
        assert {statuses[run] for run in (mine, foreign, child)} == {dg.DagsterRunStatus.STARTED}


# The supervisor alone, with services that are one line of Python each.


def test_a_database_that_cannot_be_started_again_is_told_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    answers = iter(["full", "full", "broken", "url", "other"])

    @contextmanager
    def opened(_: Settings) -> Iterator[str]:
        answer = next(answers)
        if answer in {"full", "broken"}:
            raise EmbeddedServerError(answer)
        yield answer

    monkeypatch.setattr(up_module, "open_database", opened)
    database = EmbeddedDatabase(settings, "url", said.append, interval=0)
    for _ in range(4):
        database.look()
    ended, back = "The database ended; starting it again ...", "The database is back."
    assert said == [ended, "full", "broken", back]
    with pytest.raises(ServicesError, match="another address"):
        database.look()
    assert said[4:] == [ended]


def test_what_is_no_service_is_looked_after_too(tmp_path: Path) -> None:
    looks: list[float] = []
    supervisor, _ = _supervisor(tmp_path, [[_service("only", "import time; time.sleep(60)")]])

    def look() -> None:
        looks.append(time.monotonic())
        if len(looks) == 3:
            supervisor.signals.count = 1

    supervisor.look_around = look
    supervisor.start()
    supervisor.watch()
    supervisor.stop()
    assert len(looks) == 3


def test_services_stop_in_reverse_order(tmp_path: Path) -> None:
    order: list[str] = []
    first = _service("first", "import time; time.sleep(60)", before_stop=lambda: order.append("1"))
    second = _service(
        "second", "import time; time.sleep(60)", before_stop=lambda: order.append("2")
    )
    supervisor, _ = _supervisor(tmp_path, [[first], [second]])
    supervisor.start()
    assert len(marked_processes(supervisor.mark)) == 2
    supervisor.stop()
    assert order == ["2", "1"]
    assert marked_processes(supervisor.mark) == []


def test_what_a_service_left_behind_is_found_by_its_mark(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    parent = (
        "import subprocess, sys, time; "
        f"subprocess.Popen([sys.executable, '-c', {stubborn!r}], start_new_session=True); "
        "time.sleep(60)"
    )
    supervisor, _ = _supervisor(tmp_path, [[_service("parent", parent)]])
    supervisor.start()
    wait_until(lambda: len(marked_processes(supervisor.mark)) == 2)
    supervisor.signals.count = 2  # in a hurry
    supervisor.stop()
    assert marked_processes(supervisor.mark) == []


def test_a_service_that_ends_while_starting_is_explained_by_its_log(tmp_path: Path) -> None:
    failing = _service("failing", "print('no disk'); raise SystemExit(7)", is_ready=lambda: False)
    supervisor, _ = _supervisor(tmp_path, [[failing]])
    with pytest.raises(ServicesError, match=r"(?s)failing ended with status 7.*no disk"):
        supervisor.start()
    supervisor.stop()


def test_a_service_that_never_gets_ready_is_given_up(tmp_path: Path) -> None:
    slow = _service("slow", "import time; time.sleep(60)", lambda: False, start_timeout=0.5)
    supervisor, _ = _supervisor(tmp_path, [[slow]])
    with pytest.raises(ServicesError, match="slow was not ready within"):
        supervisor.start()
    supervisor.stop()
    assert marked_processes(supervisor.mark) == []


def test_a_service_that_keeps_ending_is_given_up(tmp_path: Path) -> None:
    supervisor, said = _supervisor(tmp_path, [[_service("brief", "print('oh'); exit(3)")]])
    supervisor.start()
    with pytest.raises(
        ServicesError, match=r"(?s)brief ended with status 3 after 2 restarts; giving up.*oh"
    ):
        supervisor.watch()
    assert sum("starting it again" in line for line in said) == 2


def test_a_log_that_somebody_removed_stops_nobody(tmp_path: Path) -> None:
    first = _service("first", "import time; time.sleep(60)")
    brief = _service("brief", "import time; time.sleep(0.3); exit(3)")
    supervisor, said = _supervisor(tmp_path, [[first, brief]])
    supervisor.start()
    shutil.rmtree(supervisor.logs)
    # It also starts the other one again, whose log has no directory to be in.
    with pytest.raises(ServicesError, match="brief ended with status 3 after 2 restarts"):
        supervisor.watch()
    assert sum("starting it again" in line for line in said) == 2
    assert [one.service.name for one in supervisor._running if one.process.poll() is None] == [
        "first"
    ]
    supervisor.stop()


def test_a_large_log_is_moved_aside_and_on_a_full_disk_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = _service("talkative", "import time; time.sleep(60)")
    supervisor, _ = _supervisor(tmp_path, [[service]])
    supervisor.largest_log = 10
    log, before = supervisor.log_path(service), tmp_path / "logs" / "talkative.1.log"
    supervisor.start()
    log.write_text("0123456789a")
    supervisor._look_after(supervisor._running[0])
    assert (log.read_text(), before.read_text()) == ("", "0123456789a")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    log.write_text("0123456789b")
    supervisor._look_after(supervisor._running[0])
    assert (log.read_text(), before.read_text()) == ("", "0123456789a")
    supervisor.stop()


def test_what_fails_before_a_stop_keeps_no_service_alive(tmp_path: Path) -> None:
    def fails() -> None:
        raise OSError("too many open files")

    first = _service("first", "import time; time.sleep(60)")
    second = _service("second", "import time; time.sleep(60)", before_stop=fails)
    supervisor, said = _supervisor(tmp_path, [[first], [second]])
    supervisor.start()
    supervisor.stop()
    assert marked_processes(supervisor.mark) == []
    assert said == ["Before the second is stopped: OSError: too many open files"]


@pytest.mark.parametrize(("ignored", "counted"), [(False, 1), (True, 0)])
def test_what_nohup_started_outlives_its_terminal(*, ignored: bool, counted: int) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with StopSignals().installed() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
        assert signals.count == counted
        handled = signal.getsignal(signal.SIGHUP)
        assert handled is (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("who", ["webserver", "api"])
def test_a_service_that_ends_in_the_middle_of_its_answer_is_not_ready(
    tmp_path: Path, who: str
) -> None:
    said = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{" if who == "webserver" else b"HT"
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as pool:
        port = server.getsockname()[1]
        answering = pool.submit(_answer_once, server, said)
        if who == "webserver":
            services = DagsterServices("module", "location", tmp_path, port, "mark")
            [_, [service, _]] = services.stages(lambda: None)
        else:
            service = api_service(load_settings(api_port=port))
        assert service.is_ready() is False
        answering.result()


def _answer_once(server: socket.socket, said: bytes) -> None:
    connection, _ = server.accept()
    with connection:
        while b"\r\n\r\n" not in connection.recv(65_536):
            pass
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        # What was not read would reset the connection before its answer is seen.
        while connection.recv(65_536):
            pass


def _supervisor(directory: Path, stages: list[list[Service]]) -> tuple[Supervisor, list[str]]:
    said: list[str] = []
    supervisor = Supervisor(
        stages,
        {},
        uuid.uuid4().hex,
        directory / "logs",
        StopSignals(),
        said.append,
        restarts=2,
        first_wait=0.1,
    )
    return supervisor, said


def _service(
    name: str,
    program: str,
    is_ready: Callable[[], bool] = lambda: True,
    *,
    start_timeout: float = 30,
    before_stop: Callable[[], None] | None = None,
) -> Service:
    return Service(
        name,
        (sys.executable, "-c", program),
        is_ready,
        start_timeout=start_timeout,
        before_stop=before_stop,
    )


def _status_of(instance: dg.DagsterInstance, run_id: str) -> dg.DagsterRunStatus | None:
    run = instance.get_run_by_id(run_id)
    return None if run is None else run.status


def _started_run(instance: dg.DagsterInstance, name: str) -> str:
    status = dg.DagsterRunStatus.STARTED
    return str(create_run_for_test(instance, job_name=name, status=status).run_id)


@contextmanager
def _instance_of(settings: Settings) -> Iterator[dg.DagsterInstance]:
    assert settings.database_url is not None
    with open_instance(settings, settings.database_url.get_secret_value()) as instance:
        yield instance


def _sleeper(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(300)"],
        env={**os.environ, **environment},
        start_new_session=True,
    )


def _living(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [process for process in processes if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:  # it ended between the two questions
        return False


def _assert_nothing_left(state: dict[str, str], children: list[psutil.Process]) -> None:
    assert len(children) >= 3, "the database, the guard and something more were running"
    assert _living(children) == []
    assert marked_processes(state["mark"]) == []
    assert not Path(state["directory"]).exists()
