"""Channels to people, through Apprise: one message to one of them, within a time.

Belongs here: understanding a channel's secret URL, sending, and never showing that URL. Does not:
which message goes where and when (delivery.py).
"""

import logging
import re
import threading
import time
import warnings
from concurrent.futures import Future
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, unquote_plus

from assetclass_pipeline.errors import NotificationError
from assetclass_pipeline.model.alert import Severity
from assetclass_pipeline.monitoring.messages import Message, one_line
from assetclass_pipeline.settings import Channel

if TYPE_CHECKING:
    import apprise

_ERROR_MOST = 300
_MASK = "****"
# Shorter parts of a URL are no secrets, and masking them would leave no word of an error whole.
_SHORTEST_SECRET = 4
_THREAD = "assetclass channel "
# They write paths, queries and payloads into debug logs, and a path may be the secret itself.
_TALKATIVE = ("urllib3.connectionpool", "requests_oauthlib.oauth1_auth", "oauthlib")

_sending: dict[str, tuple["Future[None]", float]] = {}
"""The last message of each channel and until when it may take, by the channel's secret URL."""
_guard = threading.Lock()
_about: ContextVar[Channel | None] = ContextVar("_about", default=None)
"""The channel that Apprise is at work for, in this thread."""


def send(channel: Channel, message: Message, *, timeout: float) -> None:
    """Send one message and wait until it is taken, `timeout` seconds at most.

    Raises NotificationError, in one line and without the URL: it is not understood, was refused,
    or nobody answered in time.
    """
    future = start_sending(channel, message, timeout=timeout)
    error = outcome(channel, future, timeout=timeout)
    if error is not None:
        raise error


def start_sending(channel: Channel, message: Message, *, timeout: float) -> "Future[None]":
    """Begin to send in a thread of its own; the future ends when the channel has answered.

    Some channels take no time limit, so whoever waits must: what takes longer is left to itself,
    and the process can end meanwhile. Until it has ended, nothing else is sent on that channel: a
    channel that hangs holds one thread, not one for each message.
    """
    future: Future[None] = Future()
    url = channel.url.get_secret_value()
    try:
        service = _service(channel, timeout)
    except NotificationError as error:
        future.set_exception(error)
        return future

    def work() -> None:
        try:
            _notify(service, channel, message)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the one that waits is told
            future.set_exception(error)
        else:
            future.set_result(None)

    now = time.monotonic()
    with _guard:
        before, until = _sending.get(url, (None, 0.0))
        if before is not None and not before.done() and now > until:
            future.set_exception(_failed(channel, "it has not answered the message before"))
            return future
        _sending[url] = (future, now + timeout)
    threading.Thread(target=work, name=f"{_THREAD}{channel.name}", daemon=True).start()
    return future


def outcome(
    channel: Channel, future: "Future[None]", *, timeout: float
) -> NotificationError | None:
    """None when the message was taken; otherwise why not, after `timeout` seconds at most."""
    try:
        error = future.exception(timeout)
    except TimeoutError:
        return _failed(channel, f"no answer within {timeout:g} s")
    if error is None or isinstance(error, NotificationError):
        return error
    return _failed(channel, f"{type(error).__name__}: {error}")


def understood(channel: Channel) -> NotificationError | None:
    """None when its URL can be used, otherwise why not; nothing is sent."""
    try:
        _service(channel, timeout=1)
    except NotificationError as error:
        return error
    return None


def without_secret(said: str, channel: Channel) -> str:
    """The text without any part of the channel's URL, in one line."""
    url = channel.url.get_secret_value()
    _, _, rest = url.partition("://")
    parts = {part.partition("=")[2] or part for part in re.split(r"[/?&@:,;#]", rest)}
    secrets = {url, rest, *parts}
    secrets |= {unquote(part) for part in secrets} | {unquote_plus(part) for part in secrets}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            said = said.replace(secret, _MASK)
    return one_line(said, _ERROR_MOST)


def _service(channel: Channel, timeout: float) -> "apprise.NotifyBase":
    library = _library()
    asset = library.AppriseAsset(
        app_id="AssetClass",
        app_desc="AssetClass pipeline",
        # This thread sends, not one of a pool whose threads nobody could end.
        async_mode=False,
        service_timeout=0,
        secure_logging=True,
    )
    token = _about.set(channel)
    try:
        url = channel.url.get_secret_value()
        service: apprise.NotifyBase | None = library.Apprise.instantiate(url, asset=asset)
    finally:
        _about.reset(token)
    if service is None:
        raise NotificationError(
            f"Channel {channel.name}: Apprise does not understand its URL. Correct it in "
            "ASSETCLASS_ALERTS__CHANNELS; docs/notifications.md shows the forms."
        )
    service.socket_connect_timeout = timeout
    service.socket_read_timeout = timeout
    return service


def _notify(service: "apprise.NotifyBase", channel: Channel, message: Message) -> None:
    _about.set(channel)  # this thread does nothing else
    library = _library()
    kinds = library.NotifyType
    by_severity = {
        Severity.HIGH: kinds.FAILURE,
        Severity.MEDIUM: kinds.WARNING,
        Severity.LOW: kinds.INFO,
    }
    services = library.Apprise(asset=service.asset)
    services.add(service)
    with services.notify(
        title=message.title,
        body=message.body,
        notify_type=kinds.SUCCESS if message.is_over else by_severity[message.severity],
        body_format=library.NotifyFormat.TEXT,
    ) as result:
        if not result:
            raise _failed(channel, " ".join(entry.message for entry in result.logs()))


def _failed(channel: Channel, why: str) -> NotificationError:
    said = without_secret(why, channel) or "refused, without a reason"
    return NotificationError(f"Channel {channel.name}: {said}")


@cache
def _library() -> Any:  # noqa: ANN401 - its names carry no types
    """Apprise, which is slow to import and writes to no log from now on.

    Its warnings are kept with the result of each message and masked there.
    """
    own = logging.getLogger("apprise")
    own.propagate = False
    own.setLevel(logging.WARNING)
    own.addHandler(logging.NullHandler())
    own.addFilter(_masks)
    with warnings.catch_warnings():
        # One of its plugins asks for a module that Python is about to drop, and does without it.
        warnings.simplefilter("ignore", DeprecationWarning)
        import apprise  # now that its logger is masked

        apprise.Apprise.instantiate("json://localhost")  # loads the plugins
    for name in _TALKATIVE:
        logging.getLogger(name).addFilter(_is_not_ours)
    return apprise


def _masks(record: logging.LogRecord) -> bool:
    """Passes every record, without the URL of the channel that it is about."""
    channel = _about.get()
    if channel is not None:
        record.msg, record.args = without_secret(record.getMessage(), channel), None
    return True


def _is_not_ours(record: logging.LogRecord) -> bool:
    return not str(record.threadName).startswith(_THREAD)
