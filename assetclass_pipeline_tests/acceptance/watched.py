"""`assetclass up` over a market, with a receiver of its messages: alerts from cause to person.

Belongs here: launching, killing the daemon, and waiting for what people are told. Does not: what
provokes which alert (the tests).
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

import dagster as dg
import psutil
from psycopg import Connection
from psycopg.rows import TupleRow

from assetclass_pipeline.cli.marked_processes import is_run_worker, marked_processes
from assetclass_pipeline.model.alert import Alert, AlertStatus, AlertType
from assetclass_pipeline.monitoring.alert_store import alert_history, list_alerts
from assetclass_pipeline.settings import Settings
from assetclass_pipeline_tests.acceptance.alert_table import Told
from assetclass_pipeline_tests.cli.test_supervisor import Up, command_line, wait_until
from assetclass_pipeline_tests.defs.conftest import Pipeline
from assetclass_pipeline_tests.market import Market
from assetclass_pipeline_tests.receiver import Received, Receiver

LONGEST = 60.0
"""Seconds in which people must know."""

# A machine that is busy with other tests is slow, and that is no reason to see nothing.
_PATIENCE = 150.0
# Others may run beside it: the health check is scheduled.
_PROCESS = re.compile(r"Started process for run \(pid: (\d+)\)")
_ALERT = re.compile(r"assetclass alerts (?:ack|show) (\d+)")


@dataclass
class Story:
    """One alert as a test provokes it.

    `came_true` is when its condition first held, in seconds since 1970. An incident that goes on is
    `seen` once however often it is looked at; others are counted.
    """

    alert_type: AlertType
    cause: str
    condition: str
    provoked: str
    seen: int = 2
    escalates: bool = False
    came_true: float = 0.0


@dataclass
class Watched:
    """What a module watches."""

    up: Up
    market: Market
    receiver: Receiver
    pipeline: Pipeline
    stories: Mapping[str, Story]
    connection: Connection[TupleRow]
    _clock: float = field(default_factory=lambda: time.time() - time.monotonic())

    @property
    def settings(self) -> Settings:
        """Those of `up`."""
        return self.pipeline.settings

    def launch(
        self, job: str, *, assets: list[str] | None = None, succeeds: bool = True
    ) -> dg.JobExecutionResult:
        """A run in this process, as commands make them; the daemon has no part in it."""
        result = self.pipeline.launch(job=job, assets=assets)
        assert result.success is succeeds
        return result

    def kill_daemon(self) -> None:
        """Kill it in the midst of whatever it does; `up` starts another one."""
        [daemon] = [one for one in self._processes() if "dagster._daemon" in command_line(one)]
        daemon.kill()

    def kill_run_worker(self, run_id: str | None) -> float:
        """Kill the process of a run that was launched; when that was."""
        said = "\n".join(event.message for event in self.pipeline.instance.all_logs(str(run_id)))
        found = _PROCESS.search(said)
        assert found is not None, said
        worker = psutil.Process(int(found[1]))
        assert is_run_worker(worker)
        worker.kill()
        return time.time()

    def _processes(self) -> list[psutil.Process]:
        return marked_processes(self.up.state["mark"])

    def came_true(self, at: datetime | float, *names: str) -> None:
        """Note when the conditions of these stories first held."""
        for name in names:
            self.stories[name].came_true = at if isinstance(at, float) else at.timestamp()

    def failed_at(self, asset: str, check: str) -> float:
        """When the newest evaluation of a check was made."""
        key = dg.AssetCheckKey(dg.AssetKey(asset), check)
        [record] = self.pipeline.instance.event_log_storage.get_asset_check_execution_history(
            key, limit=1
        )
        assert record.event is not None
        return float(record.event.timestamp)

    def ended_at(self, result: dg.JobExecutionResult) -> float:
        """When a run ended."""
        record = self.pipeline.instance.get_run_record_by_id(result.run_id)
        assert record is not None
        assert record.end_time is not None
        return float(record.end_time)

    def wait_told(self, *names: str) -> None:
        """Until people were told of each."""
        self._wait("told of", names, lambda story: bool(self.messages(story)))

    def wait_again(self, *names: str) -> None:
        """Until each was seen again."""
        self._wait("seen again", names, self._is_counted)

    def wait_over(self, *names: str) -> None:
        """Until people were told that each is over."""
        self._wait("over", names, lambda story: "RESOLVED" in Counter(self.kinds(story)))

    def _is_counted(self, story: Story) -> bool:
        found = self.alerts(story.cause)
        return bool(found) and found[0].occurrences >= story.seen

    def _wait(self, what: str, names: Iterable[str], happened: Callable[[Story], bool]) -> None:
        for name in names:
            try:
                wait_until(partial(happened, self.stories[name]), _PATIENCE)
            except AssertionError:
                known = [(one.cause, one.status, one.summary) for one in self.alerts()]
                raise AssertionError(
                    f"{name} was not {what}: {known}; {self.receiver.titles}"
                ) from None

    def alerts(self, cause: str | None = None) -> list[Alert]:
        """Every alert there was, or those of a cause."""
        found = list_alerts(self.connection, self.settings)
        return [alert for alert in found if cause in (None, alert.cause)]

    def messages(self, story: Story) -> list[Received]:
        """What people were told of it."""
        numbers = {alert.id for alert in self.alerts(story.cause)}
        with_number = [
            (message, _ALERT.search(message.body)) for message in list(self.receiver.messages)
        ]
        return [message for message, found in with_number if found and int(found[1]) in numbers]

    def kinds(self, story: Story) -> list[str]:
        """How the titles begin: a severity, or RESOLVED."""
        return [message.title.split()[0] for message in self.messages(story)]

    def assert_told_once(self, name: str) -> Told:
        """One alert, one message that it opened, in time, and one that it is over."""
        story = self.stories[name]
        [alert] = self.alerts(story.cause)
        assert (alert.alert_type, alert.status) == (story.alert_type, AlertStatus.RESOLVED)
        assert alert.times_reopened == 0
        assert alert.occurrences >= story.seen
        history = alert_history(self.connection, self.settings, alert.id)
        told = [one.occasion for one in history.notifications if one.delivered_at is not None]
        if story.escalates:
            told = [one for one in told if not one.startswith("escalated")]
        assert told == ["opened", "resolved 1"]
        kinds = self.kinds(story)
        assert kinds[-1] == "RESOLVED"
        assert len(kinds) == sum(one.delivered_at is not None for one in history.notifications)
        opened = self.messages(story)[0]
        if alert.run_id:
            assert f"Run: {self.up.state['url']}/runs/" in opened.body
        seconds = opened.at + self._clock - story.came_true
        assert 0 <= seconds <= LONGEST
        return Told(alert.alert_type.value, story.condition, story.provoked, seconds)

    def assert_nothing_else(self) -> None:
        """No alert but those of the stories, and no message but theirs."""
        causes = {story.cause for story in self.stories.values()}
        assert {alert.cause for alert in self.alerts()} == causes
        told = sum(len(self.messages(story)) for story in self.stories.values())
        assert len(self.receiver.titles) == told, self.receiver.titles
