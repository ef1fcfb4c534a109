"""How a caller proves who it is: a token of ours, one of the identity provider, or the loopback.

Belongs here: from a request to a caller, cheaply for us when it fails. Does not: what the caller
may do (access.py).
"""

import ipaddress
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Protocol

from fastapi import Request

from assetclass_pipeline.api.connections import Connections
from assetclass_pipeline.api.envelope import correlation_id_of
from assetclass_pipeline.api.limits import Limits
from assetclass_pipeline.api.refusals import Refusals
from assetclass_pipeline.engine.tokens import recognise
from assetclass_pipeline.errors import (
    AssetClassError,
    DatabaseUnavailableError,
    ForbiddenError,
    IdentityProviderError,
    SchemaNotReadyError,
    ServerBusyError,
    TooManyRequestsError,
    UnauthorizedError,
)
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.token import Role, digest, is_secret

# No token can be called so: their names hold no brackets.
UNKNOWN = Actor.token("(unauthenticated)")
ANONYMOUS = Actor.token("(anonymous on this machine)")

_MOST_REMEMBERED = 10_000
# Seconds. A secret that was wrong stays wrong. A good one is good for a moment, so that two hundred
# requests a second do not ask two hundred times; longer it is believed only while the database
# cannot be asked, for health, and to let its owner past a neighbour's failed logins.
_REFUSED_FOR = 60.0
_FRESH_FOR = 1.0
_GOOD_FOR = 900.0

_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "[::1]", "::1"}
_FROM_A_PROXY = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip")


@dataclass(frozen=True)
class Caller:
    """Who calls, with which role, from where, and under which id that is found again."""

    actor: Actor
    role: Role
    address: str
    correlation_id: str

    @property
    def requested_by(self) -> str:
        """The text for an operation's `requestedBy`."""
        return self.actor.requester


@dataclass(frozen=True)
class Identity:
    """A caller before it is known where it calls from."""

    actor: Actor
    role: Role


class IdentityProvider(Protocol):
    """Somebody else's tokens."""

    def looks_like(self, bearer: str) -> bool:
        """Whether it could be one."""

    def identify(self, bearer: str) -> Identity:
        """Whose it is. Raises UnauthorizedError, IdentityProviderError."""


@dataclass
class _Memory:
    """Hashes of secrets for a while, the latest ones; safe from several threads."""

    seconds: float
    _content: OrderedDict[str, tuple[float, Identity | None]] = field(default_factory=OrderedDict)
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def put(self, key: str, identity: Identity | None = None, *, since: float) -> None:
        """Remember what was so at `since` (monotonic seconds)."""
        with self._guard:
            self._content[key] = (since + self.seconds, identity)
            self._content.move_to_end(key)
            while len(self._content) > _MOST_REMEMBERED:
                self._content.popitem(last=False)

    def get(self, key: str) -> Identity | None:
        with self._guard:
            ends, identity = self._content.get(key, (0.0, None))
        return identity if ends > time.monotonic() else None

    def __contains__(self, key: str) -> bool:
        with self._guard:
            return self._content.get(key, (0.0, None))[0] > time.monotonic()

    def drop(self, key: str) -> None:
        with self._guard:
            self._content.pop(key, None)


@dataclass
class Authenticator:
    """Recognises callers; for a wrong token at most one question to the database in a minute."""

    connections: Connections
    limits: Limits
    refusals: Refusals
    provider: IdentityProvider | None = None
    _refused: _Memory = field(default_factory=lambda: _Memory(_REFUSED_FOR))
    _good: _Memory = field(default_factory=lambda: _Memory(_GOOD_FOR))
    _fresh: _Memory = field(default_factory=lambda: _Memory(_FRESH_FOR))

    def identify(self, request: Request) -> Caller:
        """The caller. Raises UnauthorizedError, TooManyRequestsError, DatabaseUnavailableError."""
        address = address_of(request)
        try:
            identity = self._identity(request, address)
        except (UnauthorizedError, ForbiddenError, TooManyRequestsError) as error:
            self.note_refusal(request, error, None)
            raise
        return self.admit(request, identity)

    def known(self, request: Request) -> Identity | None:
        """Who was identified by the same token less than a second ago; takes no time."""
        bearer = _bearer(request)
        return None if bearer is None else self._fresh.get(digest(bearer))

    def admit(self, request: Request, identity: Identity) -> Caller:
        """The caller, whose request is counted. Raises TooManyRequestsError."""
        caller = _caller(request, identity)
        request.state.caller = caller.actor.name
        try:
            self.limits.count_caller(caller.actor.name)
        except TooManyRequestsError as error:
            self.note_refusal(request, error, caller)
            raise
        return caller

    def identify_if_it_says(self, request: Request) -> Caller | None:
        """As `identify`; None for a caller that shows no token, or one that cannot be checked now.

        While database or identity provider are away, one whose token was good a few minutes ago is
        believed.
        """
        if _bearer(request) is None and self._anonymous_role(request) is None:
            return None
        try:
            return self.identify(request)
        except (
            DatabaseUnavailableError,
            SchemaNotReadyError,
            ServerBusyError,
            IdentityProviderError,
        ):
            identity = self._good.get(digest(_bearer(request) or ""))
            return None if identity is None else _caller(request, identity)

    def note_refusal(self, request: Request, error: AssetClassError, caller: Caller | None) -> None:
        """For the audit log: this caller, or somebody unknown, was refused."""
        self.refusals.note(
            UNKNOWN if caller is None else caller.actor,
            error,
            address_of(request),
            f"{request.method} {request.url.path[:200]}",
            correlation_id_of(request),
        )

    def _identity(self, request: Request, address: str) -> Identity:
        bearer = _bearer(request)
        if bearer is None:
            role = self._anonymous_role(request)
            if role is not None:
                return Identity(ANONYMOUS, role)
            raise UnauthorizedError(
                "This call needs a token: send the header Authorization: Bearer TOKEN. "
                "`assetclass tokens create --name NAME --role ROLE` makes one."
            )
        key = digest(bearer)
        if self._good.get(key) is None:
            self.limits.require_trust(address)
        try:
            return self._of_bearer(bearer, key)
        except UnauthorizedError:
            self.limits.count_failure(address)
            self._good.drop(key)
            raise

    def _of_bearer(self, bearer: str, key: str) -> Identity:
        # The answer may be as old as the question: it was revoked since, and the thread slept.
        asked_at = time.monotonic()
        if is_secret(bearer):
            if key in self._refused:
                raise _not_valid()
            with self.connections.borrowed() as connection:
                token = recognise(connection, self.connections.settings, bearer)
            if token is None:
                self._refused.put(key, since=asked_at)
                raise _not_valid()
            identity = Identity(Actor.token(token.name), token.role)
        elif self.provider is not None and self.provider.looks_like(bearer):
            identity = self.provider.identify(bearer)
        else:
            raise _not_valid()
        self._good.put(key, identity, since=asked_at)
        self._fresh.put(key, identity, since=asked_at)
        return identity

    def _anonymous_role(self, request: Request) -> Role | None:
        """What callers on this machine may do without a token, where the settings say so.

        A web page in a browser on this machine is none of them, wherever it came from, nor is
        anybody behind a proxy on it.
        """
        role = self.connections.settings.api_anonymous_role
        if role is None or not _is_loopback(address_of(request)):
            return None
        headers = request.headers
        if any(name in headers for name in _FROM_A_PROXY):
            return None
        host = headers.get("host", "").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        if name not in _LOOPBACK_NAMES:
            return None
        if headers.get("sec-fetch-site", "none") not in {"none", "same-origin"}:
            return None
        origin = headers.get("origin")
        return role if origin in {None, f"http://{host}"} else None


def _caller(request: Request, identity: Identity) -> Caller:
    return Caller(identity.actor, identity.role, address_of(request), correlation_id_of(request))


def address_of(request: Request) -> str:
    """The network address that the request came from."""
    return request.client.host if request.client is not None else "unknown"


def _bearer(request: Request) -> str | None:
    """What stands behind `Bearer`; None without the header, "" for one that says something else."""
    header = request.headers.get("authorization")
    if header is None:
        return None
    scheme, _, bearer = header.partition(" ")
    return bearer.strip() if scheme.lower() == "bearer" else ""


def _not_valid() -> UnauthorizedError:
    return UnauthorizedError(
        "This token is not valid: it is mistyped, expired or revoked. `assetclass tokens list` "
        "shows those in use."
    )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False
