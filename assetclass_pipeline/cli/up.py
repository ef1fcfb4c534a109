"""`assetclass up`: database, Dagster's services and the API, until Ctrl-C.

Belongs here: the order of starting and stopping, one `up` per home, what the user reads. Does not:
how processes are kept alive (supervisor), and which they are (dagster_services, api_service).
"""

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer
from filelock import FileLock, Timeout
from rich.console import Console

from assetclass_pipeline.api.first_step import FIRST_STEP, lacks_token
from assetclass_pipeline.cli.api_service import api_service, api_url
from assetclass_pipeline.cli.dagster_services import WEBSERVER_HOST, DagsterServices, run_ender
from assetclass_pipeline.cli.marked_processes import (
    MARK_VARIABLE,
    end_processes,
    marked_processes,
)
from assetclass_pipeline.cli.supervisor import (
    Report,
    StopRequested,
    StopSignals,
    Supervisor,
    python_module,
)
from assetclass_pipeline.database import schema
from assetclass_pipeline.database.connections import open_database, running_database
from assetclass_pipeline.defs.dagster_home import (
    LOCATION_NAME,
    code_server_directory,
    dagster_home_environment,
    is_code_server_directory,
    prepare_instance,
)
from assetclass_pipeline.errors import (
    DatabaseUnavailableError,
    EmbeddedServerError,
    ServicesError,
)
from assetclass_pipeline.settings import Settings, load_settings

DEFINITIONS_MODULE = "assetclass_pipeline.definitions"

# Seconds that runs in progress get for their last batch and their final state.
_RUN_PATIENCE = 30.0


def up(
    port: Annotated[
        int | None, typer.Option(help="Port of the web page (ASSETCLASS_WEBSERVER_PORT).")
    ] = None,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="The web page shows everything and starts nothing.")
    ] = False,
) -> None:
    """Run the database, the Dagster web page, the daemon and the API until Ctrl-C."""
    settings = load_settings() if port is None else load_settings(webserver_port=port)
    console = Console(stderr=True, highlight=False, markup=False)
    run_services(settings, read_only=read_only, report=console.print)


def run_services(
    settings: Settings,
    *,
    report: Report,
    definitions_module: str = DEFINITIONS_MODULE,
    read_only: bool = False,
) -> None:
    """Start everything, keep it alive, stop everything when a signal asks for it.

    Raises ServicesError when something cannot start or does not stay alive; whatever was started
    has been stopped again by then.
    """
    signals = StopSignals()
    report = _to_whoever_listens(report)
    began = time.monotonic()
    with signals.installed():
        try:
            with _prepared(settings, definitions_module, read_only, signals, report) as (
                services,
                supervisor,
            ):
                supervisor.start()
                report(f"Ready after {time.monotonic() - began:.0f} s. Look at {services.url}")
                report(f"The API is at {api_url(settings)}, and described at its /docs.")
                if lacks_token(settings, supervisor.environment["ASSETCLASS_DATABASE_URL"]):
                    report(FIRST_STEP)
                report(f"Logs are in {supervisor.logs}. Ctrl-C stops everything.")
                supervisor.watch()
                report("Stopping; runs in progress finish their batch first ...")
        except StopRequested:
            pass
    report("Stopped; nothing is left running.")


def _to_whoever_listens(report: Report) -> Report:
    def careful(text: str) -> None:
        # The terminal may have been closed; that is no reason to leave services behind.
        with contextlib.suppress(OSError):
            report(text)

    return careful


@contextlib.contextmanager
def _prepared(
    settings: Settings,
    definitions_module: str,
    read_only: bool,
    signals: StopSignals,
    report: Report,
) -> Iterator[tuple[DagsterServices, Supervisor]]:
    """All that the services stand on; taken away in reverse order, after they were stopped."""
    home = settings.home.absolute()
    mark = secrets.token_hex(16)
    with contextlib.ExitStack() as stack:
        state = stack.enter_context(_only_one_in(home, settings.webserver_port))
        _end_leftovers(state, report)
        _require_free_port(settings.webserver_port, "the web page", "ASSETCLASS_WEBSERVER_PORT")
        _require_free_port(settings.api_port, "the API", "ASSETCLASS_API_PORT")
        directory = stack.enter_context(_private_directory())
        services = DagsterServices(
            definitions_module, LOCATION_NAME, directory, settings.webserver_port, mark, read_only
        )
        _write_state(state, mark, directory, services.url)
        report("Starting the database ...")
        data_url = stack.enter_context(open_database(settings))
        stack.enter_context(_guard(settings, mark, directory))
        signals.check()
        if settings.database_url is None:
            # The embedded database is ours alone; in anyone else's, `db upgrade` is a decision.
            schema.upgrade(data_url, settings)
        prepare_instance(settings, data_url)
        environment = (
            dagster_home_environment(settings, data_url)
            | _search_path(directory)
            | _ports(settings)
        )
        report("Checking the definitions ...")
        _preflight(definitions_module, environment | {MARK_VARIABLE: mark}, signals, report)
        end_runs = run_ender(
            services,
            environment | {MARK_VARIABLE: mark},
            patience=_RUN_PATIENCE,
            hurry=lambda: signals.count > 1,
        )
        stages = [*services.stages(end_runs), [api_service(settings)]]
        supervisor = Supervisor(stages, environment, mark, home / "logs", signals, report)
        if settings.database_url is None:
            supervisor.look_around = EmbeddedDatabase(settings, data_url, report).look
        stack.callback(supervisor.stop)
        report("Starting the code server, the web page, the daemon and the API ...")
        yield services, supervisor


@dataclass
class EmbeddedDatabase:
    """The embedded server under everything: started again when it is gone (it was killed, say).

    The services reach for it again by themselves, at the address that they were given.
    """

    settings: Settings
    url: str
    report: Report
    interval: float = 5.0
    _next: float = 0.0
    _trouble: str | None = None

    def look(self) -> None:
        """Start it again when it is gone. Raises ServicesError when its address cannot be kept."""
        if time.monotonic() < self._next:
            return
        try:
            running_database(self.settings)
        except DatabaseUnavailableError:
            self._start_again()
        except EmbeddedServerError as error:
            self._tell(str(error))
        self._next = time.monotonic() + self.interval

    def _start_again(self) -> None:
        if self._trouble is None:
            self._tell("The database ended; starting it again ...")
        try:
            # Whoever has opened it first still uses it: it goes on behind this.
            with open_database(self.settings) as url:
                pass
        except EmbeddedServerError as error:
            self._tell(str(error))
            return
        if url != self.url:
            raise ServicesError(
                "The database is back at another address, because something else took its port "
                "meanwhile: start `assetclass up` again."
            )
        self._trouble = None
        self.report("The database is back.")

    def _tell(self, trouble: str) -> None:
        """Once, however often it is met."""
        if trouble != self._trouble:
            self._trouble = trouble
            self.report(trouble)


def _ports(settings: Settings) -> dict[str, str]:
    # What `--port` chose is nowhere else, and links in messages lead to it.
    return {
        "ASSETCLASS_WEBSERVER_PORT": str(settings.webserver_port),
        "ASSETCLASS_API_PORT": str(settings.api_port),
    }


def _search_path(directory: Path) -> dict[str, str]:
    # Dagster drops the first entry before it imports definitions, for it is normally the current
    # directory. Ours is started without that one, and must not lose another in its place.
    inherited = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(directory), *([inherited] if inherited else [])])}


@contextlib.contextmanager
def _only_one_in(home: Path, port: int) -> Iterator[Path]:
    """The state file of this home's `up`, locked; the lock dies with the process.

    Raises ServicesError that says where the other one runs.
    """
    home.mkdir(parents=True, exist_ok=True)
    state = home / "up.json"
    lock = FileLock(home / "up.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        other = _read_state(state)
        raise ServicesError(
            f"`assetclass up` runs already for {home}: {other.get('url', 'it is starting')} "
            f"(process {other.get('pid', 'unknown')}). Use that one, stop it with Ctrl-C there, or "
            f"give this one a directory of its own (ASSETCLASS_HOME) and a port other than {port} "
            "(ASSETCLASS_WEBSERVER_PORT)."
        ) from None
    try:
        yield state
        state.unlink(missing_ok=True)
    finally:
        lock.release()


def _write_state(state: Path, mark: str, directory: Path, url: str) -> None:
    content = {"pid": os.getpid(), "url": url, "mark": mark, "directory": str(directory)}
    state.write_text(json.dumps(content), encoding="utf-8")


def _read_state(state: Path) -> dict[str, str]:
    try:
        content = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _end_leftovers(state: Path, report: Report) -> None:
    """End what an `up` that was killed, together with its guard, has left behind."""
    before = _read_state(state)
    if "mark" not in before:
        return
    left = marked_processes(before["mark"])
    if left:
        report(f"Ending {len(left)} processes that a killed `assetclass up` left behind ...")
        end_processes(left, patience=_RUN_PATIENCE)
    directory = Path(before.get("directory", ""))
    if is_code_server_directory(directory):
        shutil.rmtree(directory, ignore_errors=True)


def _require_free_port(port: int, what: str, setting: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as candidate:
        if os.name == "posix":
            # As the webserver does: connections that linger do not make a port taken.
            candidate.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            candidate.bind((WEBSERVER_HOST, port))
        except OSError as error:
            raise ServicesError(
                f"Port {port} cannot be used for {what}: {error.strerror}. End what listens there, "
                f"or choose another: {setting}={port + 1}."
            ) from None


@contextlib.contextmanager
def _private_directory() -> Iterator[Path]:
    directory = code_server_directory()
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@contextlib.contextmanager
def _guard(settings: Settings, mark: str, directory: Path) -> Iterator[None]:
    """A small process that ends the services if this one is killed."""
    embedded = [] if settings.database_url is not None else [str(settings.home / "postgres")]
    with subprocess.Popen(
        python_module("assetclass_pipeline.cli.guard", str(directory), *embedded),
        env={**os.environ, MARK_VARIABLE: mark},
        stdin=subprocess.PIPE,
        start_new_session=True,
    ) as guard:
        try:
            yield
        finally:
            # The guard may have been killed too; then there is nobody to tell.
            with contextlib.suppress(BrokenPipeError):
                guard.communicate(b"done")


def _preflight(
    definitions_module: str,
    environment: Mapping[str, str],
    signals: StopSignals,
    report: Report,
) -> None:
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        process = subprocess.Popen(
            python_module("assetclass_pipeline.cli.preflight", definitions_module),
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                signals.sleep()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        output.seek(0)
        said = output.read().strip()
    if process.returncode != 0:
        raise ServicesError(
            f"{said or 'The check ended without a reason.'} Mend that, then start again; `dagster "
            f"definitions validate -m {definitions_module}` shows the whole traceback."
        )
    if said:
        report(said)
