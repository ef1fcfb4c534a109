"""Channels: one message on its way, in time or given up, and never a word of the secret URL."""

import logging
import time
import traceback

import pytest

from assetclass_pipeline.errors import NotificationError
from assetclass_pipeline.model.alert import Severity
from assetclass_pipeline.monitoring.channels import send, understood, without_secret
from assetclass_pipeline.monitoring.messages import Message
from assetclass_pipeline.settings import Channel
from assetclass_pipeline_tests.receiver import LONGEST_HANG, SECRET, Mood, Receiver, closed_port

MESSAGE = Message("A title", "A line\nAnother <line> & *more*", Severity.HIGH)


@pytest.mark.parametrize(
    ("severity", "is_over", "kind"),
    [
        (Severity.HIGH, False, "failure"),
        (Severity.MEDIUM, False, "warning"),
        (Severity.LOW, False, "info"),
        (Severity.HIGH, True, "success"),
    ],
)
def test_a_message_arrives_as_it_was_written(
    receiver: Receiver, severity: Severity, is_over: bool, kind: str
) -> None:
    message = Message(MESSAGE.title, MESSAGE.body, severity, is_over=is_over)
    send(receiver.channel("pager"), message, timeout=5)
    (received,) = receiver.messages
    assert (received.title, received.body, received.kind) == (MESSAGE.title, MESSAGE.body, kind)


def test_a_refusal_says_what_was_answered(receiver: Receiver) -> None:
    receiver.mood = Mood.FAILING
    with pytest.raises(NotificationError, match=r"Channel pager: .*error=500"):
        send(receiver.channel("pager"), MESSAGE, timeout=5)


def test_a_receiver_that_is_not_there(receiver: Receiver) -> None:
    channel = receiver.channel("pager", url=f"json://u:{SECRET}@127.0.0.1:{closed_port()}")
    with pytest.raises(NotificationError, match=r"Channel pager: A Connection error occurred"):
        send(channel, MESSAGE, timeout=5)


def test_a_receiver_that_never_answers_is_given_up_in_time(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that it is our limit that ends it, not Apprise's own.
    monkeypatch.setattr("apprise.NotifyBase.socket_read_timeout", 2 * LONGEST_HANG)
    receiver.mood = Mood.HANGING
    begun = time.monotonic()
    with pytest.raises(NotificationError, match=r"Channel pager: "):
        send(receiver.channel("pager"), MESSAGE, timeout=0.3)
    assert 0.2 < time.monotonic() - begun < LONGEST_HANG


def test_what_hangs_without_a_limit_of_its_own_holds_one_thread(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a plugin that waits in its own way: no limit of ours reaches it.
    monkeypatch.setattr(
        "apprise.plugins.custom_json.NotifyJSON.request_timeout", None, raising=False
    )
    receiver.mood = Mood.HANGING
    channel = receiver.channel("pager")
    with pytest.raises(NotificationError, match=r"no answer within 0\.2 s"):
        send(channel, MESSAGE, timeout=0.2)
    begun = time.monotonic()
    with pytest.raises(NotificationError, match="has not answered the message before"):
        send(channel, MESSAGE, timeout=LONGEST_HANG)
    assert time.monotonic() - begun < LONGEST_HANG
    assert receiver.requests == 1
    receiver.stop()


@pytest.mark.parametrize(
    "url",
    [
        f"nonsense-{SECRET}",
        f"nosuchscheme://{SECRET}@host/{SECRET}",
        f"slack://{SECRET}",
        f"mailto://:{SECRET}",
        "",
    ],
)
def test_a_url_that_is_not_understood(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    channel = Channel.model_validate({"name": "pager", "url": url})
    caplog.set_level(1)
    with pytest.raises(NotificationError, match="Channel pager: Apprise does not") as caught:
        send(channel, MESSAGE, timeout=5)
    assert understood(channel) is not None
    shown = (
        "".join(traceback.format_exception(caught.value)) + caplog.text + str(capfd.readouterr())
    )
    assert SECRET not in shown


@pytest.mark.parametrize(
    "url",
    [
        "mailtos://user:password@example.com?to=oncall@example.com",
        "slack://TokenAxxx/TokenBxxx/TokenCxxxxxxxxxxxxxxxxxx/#alerts",
        "pagerduty://integrationkey@apikey",
        "json://127.0.0.1:8000/hook",
    ],
)
def test_urls_that_are_understood(url: str) -> None:
    assert understood(Channel.model_validate({"name": "x", "url": url})) is None


@pytest.mark.parametrize("mood", [Mood.ANSWERING, Mood.FAILING, Mood.HANGING])
def test_the_secret_is_in_no_log_and_no_error(
    mood: Mood,
    receiver: Receiver,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    receiver.mood = mood
    channel = receiver.channel("pager")
    caplog.set_level(1)
    shown = repr(channel)
    try:
        send(channel, MESSAGE, timeout=0.3 if mood is Mood.HANGING else 5)
    except NotificationError as error:
        shown += "".join(traceback.format_exception(error))
    logging.getLogger("urllib3.connectionpool").debug("others may still write")
    shown += caplog.text + str(capfd.readouterr())
    assert "others may still write" in shown
    assert SECRET not in shown
    receiver.stop()


@pytest.mark.parametrize(
    ("url", "said", "shown"),
    [
        ("json://ann:S3CRET@host.example/p4th", "S3CRET at host.example", "**** at ****"),
        (
            "slack://T0KENA/T0KENB/T0KENC",
            "posted to T0KENB: T0KENC refused",
            "posted to ****: **** refused",
        ),
        ("json://h/?key=S3%2FCRET", "S3/CRET or S3%2FCRET", "**** or ****"),
        ("json://ann:S3%40CRET@h", "S3@CRET\nS3%40CRET", "**** ****"),
        ("json://h", "h" * 400, "h" * 297 + "..."),
    ],
)
def test_no_part_of_a_url_is_repeated(url: str, said: str, shown: str) -> None:
    channel = Channel.model_validate({"name": "x", "url": url})
    assert without_secret(said, channel) == shown
