"""API tokens in words: roles, what a token looks like, what is known of one.

Belongs here: the order of the roles, the shape of a secret. Does not: storing tokens.
"""

import base64
import hashlib
import re
import secrets
from datetime import datetime
from enum import StrEnum

from assetclass_pipeline.model.wire import Moment, WireModel


class Role(StrEnum):
    """What a caller of the API may do; each one may do all that those before it may."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, least: "Role") -> bool:
        """Whether this role may do what `least` may."""
        return _RANKS[self] >= _RANKS[least]


_RANKS = {role: rank for rank, role in enumerate(Role)}

PREFIX = "act_"
"""Scanners of logs and repositories can tell our tokens by it."""
_BYTES = 32
_SECRET = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")
# Of 43 characters these tell tokens apart for people and say nothing that helps to guess one.
_SHOWN = len(PREFIX) + 4

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,59}$"


def new_secret() -> str:
    """A secret of 256 random bits, 47 characters."""
    random = base64.urlsafe_b64encode(secrets.token_bytes(_BYTES)).rstrip(b"=")
    return f"{PREFIX}{random.decode()}"


def is_secret(text: str) -> bool:
    """Whether it has the shape of a secret: what has not is refused without asking anybody."""
    return _SECRET.fullmatch(text) is not None


def digest(secret: str) -> str:
    """SHA-256 in hex: what is stored. Of 256 random bits a slow hash protects no better."""
    return hashlib.sha256(secret.encode()).hexdigest()


def hint(secret: str) -> str:
    """The beginning, by which people recognise a token."""
    return secret[:_SHOWN]


class Token(WireModel):
    """A token without its secret, which nobody can show again."""

    name: str
    role: Role
    hint: str
    created_at: Moment
    created_by: str
    expires_at: Moment | None
    revoked_at: Moment | None
    revoked_by: str | None
    last_used_at: Moment | None

    def is_valid(self, now: datetime) -> bool:
        """Whether it opens anything."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)
