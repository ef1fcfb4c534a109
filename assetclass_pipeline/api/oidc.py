"""Tokens of an identity provider: JWTs of OpenID Connect.

Belongs here: checking one, and the role that its claims give. Does not: logging anybody in.
"""

import re
import time
from typing import Any

import jwt
from jwt import PyJWKClient, PyJWKClientConnectionError, PyJWTError

from assetclass_pipeline.api.authentication import Identity
from assetclass_pipeline.errors import (
    ForbiddenError,
    IdentityProviderError,
    UnauthorizedError,
)
from assetclass_pipeline.model.audit import Actor
from assetclass_pipeline.model.token import Role
from assetclass_pipeline.settings import OidcSettings

_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_LONGEST = 8192
_LONGEST_NAME = 200
# Seconds.
_STAYS_AWAY = 5.0


class _Keys(PyJWKClient):
    """The provider's keys; when they could not be fetched, nobody tries again for a while.

    It is asked under a lock: without that, callers would wait for one time-out after the other.
    """

    _away_until = 0.0

    def fetch_data(self) -> object:
        """As the library's. Raises PyJWKClientConnectionError, whatever came instead of keys."""
        if time.monotonic() < self._away_until:
            raise PyJWKClientConnectionError("it was away a moment ago")
        try:
            return super().fetch_data()
        # A connection cut in mid-answer, a page that is no JSON: nothing that a caller did.
        except (PyJWTError, OSError, ValueError) as error:
            self._away_until = time.monotonic() + _STAYS_AWAY
            raise PyJWKClientConnectionError(str(error)) from error


class Oidc:
    """The identity provider of the settings; its keys are fetched when the first JWT comes."""

    def __init__(self, settings: OidcSettings) -> None:
        self._settings = settings
        self._keys = _Keys(
            settings.jwks_url,
            lifespan=settings.keys_lifetime,
            timeout=settings.keys_timeout,
        )

    def looks_like(self, bearer: str) -> bool:
        """Whether it has the three parts of a JWT."""
        return len(bearer) <= _LONGEST and _JWT.fullmatch(bearer) is not None

    def identify(self, bearer: str) -> Identity:
        """Whose token it is, with the highest role that its claims give.

        Raises UnauthorizedError for one that is not valid, ForbiddenError for one that gives no
        role, IdentityProviderError while the keys cannot be fetched.
        """
        claims = self._claims(bearer)
        name = claims.get(self._settings.name_claim)
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise UnauthorizedError(
                f"The token says nothing usable in its claim {self._settings.name_claim}."
            )
        return Identity(Actor.token(f"oidc:{name[:_LONGEST_NAME]}"), self._role(claims))

    def _claims(self, bearer: str) -> dict[str, Any]:
        settings = self._settings
        try:
            # Before the key is looked for: the algorithm is never the sender's choice.
            if jwt.get_unverified_header(bearer).get("alg") not in settings.algorithms:
                raise _not_valid("it is signed by an algorithm that is not allowed")
            key = self._keys.get_signing_key_from_jwt(bearer)
            return jwt.decode(
                bearer,
                key,
                algorithms=list(settings.algorithms),
                audience=settings.audience,
                issuer=settings.issuer,
                leeway=settings.leeway,
                options={"require": ["exp", "iss", "aud", settings.name_claim]},
            )
        except PyJWKClientConnectionError:
            raise _provider_is_away() from None
        except jwt.ExpiredSignatureError:
            raise _not_valid("it has expired") from None
        except (PyJWTError, ValueError, TypeError):
            raise _not_valid("signature, issuer, audience or times are not as they must be") from (
                None
            )

    def _role(self, claims: dict[str, Any]) -> Role:
        said = _claim(claims, self._settings.role_claim)
        values = [said] if isinstance(said, str) else said if isinstance(said, list) else []
        roles = [
            self._settings.roles[value]
            for value in values
            if isinstance(value, str) and value in self._settings.roles
        ]
        highest = [role for role in Role if role in roles][-1:]
        if not highest:
            raise ForbiddenError(
                f"The token's claim {self._settings.role_claim} gives none of the roles "
                f"{', '.join(Role)}: have it granted at the identity provider."
            )
        return highest[0]


def _claim(claims: dict[str, Any], name: str) -> object:
    """What a claim says. Providers name their own by an address, whose dots lead nowhere."""
    if name in claims:
        return claims[name]
    said: Any = claims
    for part in name.split("."):
        said = said.get(part) if isinstance(said, dict) else None
    return said


def _not_valid(reason: str) -> UnauthorizedError:
    return UnauthorizedError(f"This token is not valid: {reason}.")


def _provider_is_away() -> IdentityProviderError:
    return IdentityProviderError(
        "The keys of the identity provider cannot be fetched just now: try again, or use a token "
        "of the pipeline's own."
    )
