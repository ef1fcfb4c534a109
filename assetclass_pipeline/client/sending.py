"""Requests and their tries: what passes by itself is tried again, and nothing happens twice.

Belongs here: the connection, the address, waits. Does not: what is asked (calls.py).
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from ipaddress import ip_address
from typing import Final
from urllib.parse import urlsplit

import httpx
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    stop_before_delay,
    wait_random_exponential,
)

from assetclass_pipeline.client.refusals import (
    ApiError,
    ApiUnavailableError,
    error_code,
    refusal,
    seconds_asked,
)
from assetclass_pipeline.errors import (
    AssetClassError,
    DatabaseUnavailableError,
    IdentityProviderError,
    InvalidOptionsError,
    ServerBusyError,
    TooManyRequestsError,
)

BASE_PATH: Final = "/api/etl/asset-class-correction"
ANSWER_SECONDS: Final = 30.0

_CONNECT_SECONDS = 5.0
_LONGEST_PAUSE = 10.0
# Visible ASCII: what a header may hold, and nothing that ends it.
_VISIBLE = re.compile(r"[\x21-\x7e]+")
# The API said no before it did anything.
_REFUSED_AT_THE_DOOR = (TooManyRequestsError, ServerBusyError)
_PASSES = (*_REFUSED_AT_THE_DOOR, DatabaseUnavailableError, IdentityProviderError)
_OF_PROXIES = {
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
# Nothing arrived, so nothing can happen twice.
_NOT_ARRIVED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Connection:
    """Sends requests to one API; `tries` and `patience` (seconds) limit what one call may take.

    A try that has begun is never cut off by `patience`. Where the API asks for a longer wait, its
    refusal is raised instead.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        correlation_id: str | None,
        transport: httpx.BaseTransport | None,
        tries: int,
        patience: float,
    ) -> None:
        address = _address(url)
        headers = {"Accept": "application/json"}
        if token is not None:
            headers["Authorization"] = f"Bearer {visible('The token', token)}"
        if correlation_id is not None:
            headers["X-Correlation-ID"] = visible("The correlation id", correlation_id)
        self.url = str(address)
        self._tries = tries
        self._patience = patience
        self._http = httpx.Client(
            base_url=address,
            headers=headers,
            timeout=httpx.Timeout(ANSWER_SECONDS, connect=_CONNECT_SECONDS),
            transport=transport,
            # A proxy for the outside does not know this machine.
            trust_env=not _is_this_machine(address.host),
        )

    def close(self) -> None:
        """Let the connections go."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        said: Mapping[str, str | int | bool] | None = None,
        body: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = ANSWER_SECONDS,
        repeatable: bool,
        answers: frozenset[str] = frozenset(),
    ) -> httpx.Response:
        """The answer, after some tries.

        `repeatable` says that asking twice is as good as asking once. A refusal whose errorCode is
        among `answers` is an answer; every other one is raised.
        """

        def once() -> httpx.Response:
            try:
                answer = self._http.request(
                    method,
                    path,
                    params=said,
                    json=body,
                    headers=headers,
                    timeout=httpx.Timeout(timeout, connect=_CONNECT_SECONDS),
                )
            except httpx.RequestError as error:
                passes = repeatable or isinstance(error, _NOT_ARRIVED)
                raise _FailedTry(self._unreachable(error), passes=passes) from None
            if answer.is_success or error_code(answer) in answers:
                return answer
            found = refusal(answer)
            raise _FailedTry(
                found,
                passes=_passes(found, answer.status_code, repeatable=repeatable),
                wait=seconds_asked(answer),
            )

        trying = Retrying(
            stop=stop_after_attempt(self._tries) | stop_before_delay(self._patience),
            retry=retry_if_exception(lambda error: isinstance(error, _FailedTry) and error.passes),
            wait=_pause,
            reraise=True,
        )
        try:
            return trying(once)
        except _FailedTry as failed:
            raise failed.error from None

    def _unreachable(self, error: httpx.RequestError) -> ApiUnavailableError:
        why = str(error) or type(error).__name__
        return ApiUnavailableError(
            f"The API at {self.url} cannot be reached ({why}): is `assetclass up` running there, "
            "and is the address right?"
        )


def visible(what: str, said: str) -> str:
    """What can stand in a header. Raises InvalidOptionsError, which does not repeat it."""
    if not _VISIBLE.fullmatch(said):
        raise InvalidOptionsError(
            f"{what} must be printable ASCII without blanks, and is not: was it copied whole?"
        )
    return said


def _address(url: str) -> httpx.URL:
    """The address of the API's calls, by the server's or by that of the base path itself."""
    try:
        # The one finds a bad port, the other one half an IPv6 address.
        urlsplit(url)
        given = httpx.URL(url.strip())
    except (httpx.InvalidURL, ValueError):
        given = httpx.URL("")
    if given.scheme not in {"http", "https"} or not given.host:
        raise InvalidOptionsError(
            "The address of the API must be like https://HOST or http://HOST:8000; only http and "
            "https are spoken."
        )
    if given.userinfo or given.query or given.fragment:
        raise InvalidOptionsError(
            "The address of the API is scheme, host, port and perhaps a path: a token goes "
            "elsewhere, where logs and the list of processes do not show it."
        )
    path = given.path.rstrip("/").removesuffix(BASE_PATH).rstrip("/")
    return given.copy_with(path=path + BASE_PATH)


def _is_this_machine(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _passes(error: AssetClassError, status: int, *, repeatable: bool) -> bool:
    """Whether it is worth while, and safe, to ask again."""
    if isinstance(error, _REFUSED_AT_THE_DOOR) or status == HTTPStatus.TOO_MANY_REQUESTS:
        return True
    if isinstance(error, ApiUnavailableError | ApiError):
        return repeatable and status in _OF_PROXIES
    return repeatable and isinstance(error, _PASSES)


class _FailedTry(Exception):  # noqa: N818 - never seen outside
    """One try that did not work; it is worth another one when the reason `passes` by itself."""

    def __init__(self, error: AssetClassError, *, passes: bool, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.passes = passes
        self.wait = wait


_grown = wait_random_exponential(multiplier=0.5, max=_LONGEST_PAUSE)


def _pause(state: RetryCallState) -> float:
    """Seconds: what the API asked for, else longer each time, and not all clients at once."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, _FailedTry) else None
    return _grown(state) if asked is None else asked
