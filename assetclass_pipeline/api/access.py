"""Who may call what: roles by call, and the caller as routes see one.

Belongs here: the one table of least roles, the dependency that asks for a role. Does not: how a
caller proves who it is (authentication.py).
"""

from dataclasses import dataclass
from types import MappingProxyType

import anyio.to_thread
from fastapi import Request, params

from assetclass_pipeline.api.authentication import Authenticator, Caller
from assetclass_pipeline.errors import ForbiddenError
from assetclass_pipeline.model.token import Role

__all__ = ["LEAST_ROLES", "Caller", "require"]

LEAST_ROLES = MappingProxyType(
    {
        "GET analyze": Role.VIEWER,
        "POST preview": Role.OPERATOR,
        "POST execute": Role.OPERATOR,
        "POST validate": Role.OPERATOR,
        "GET status": Role.VIEWER,
        "GET status/{correction_id}": Role.VIEWER,
        "GET status/{correction_id}/events": Role.VIEWER,
        # Of an operation that somebody else asked for: admin.
        "POST rollback": Role.OPERATOR,
        "POST pause": Role.OPERATOR,
        "POST resume": Role.OPERATOR,
        "POST cancel": Role.OPERATOR,
        "GET metrics": Role.VIEWER,
        "GET alerts": Role.VIEWER,
        "POST alerts/{alert_id}/acknowledge": Role.OPERATOR,
        "GET audit/rows/{row_id}": Role.VIEWER,
    }
)
"""The least role of each call below the base path; `health` answers anybody, but says less."""


@dataclass(frozen=True)
class _Required:
    """The dependency behind `require`."""

    least: Role

    async def __call__(self, request: Request) -> Caller:
        authenticator: Authenticator = request.app.state.authenticator
        known = authenticator.known(request)
        if known is not None:
            caller = authenticator.admit(request, known)
        else:
            caller = await anyio.to_thread.run_sync(authenticator.identify, request)
        if not caller.role.includes(self.least):
            error = ForbiddenError(
                f"This needs the role {self.least} and you have {caller.role}. Ask an "
                f"administrator for a token: assetclass tokens create --role {self.least}."
            )
            authenticator.note_refusal(request, error, caller)
            raise error
        return caller


def require(least: Role) -> params.Depends:
    """For `Annotated[Caller, require(Role.VIEWER)]`: the caller, who has this role or a higher one.

    Raises UnauthorizedError, ForbiddenError, TooManyRequestsError, DatabaseUnavailableError.
    """
    return params.Depends(_Required(least))


def require_own(request: Request, caller: Caller, requested_by: str, what: str) -> None:
    """Return when the caller is an administrator or has asked for `what` itself.

    `requested_by` is the operation's. Raises ForbiddenError.
    """
    if caller.role.includes(Role.ADMIN) or requested_by == caller.actor.requester:
        return
    error = ForbiddenError(
        f"{what} was asked for by {requested_by or 'the system'}: only they and administrators may "
        "do this."
    )
    authenticator: Authenticator = request.app.state.authenticator
    authenticator.note_refusal(request, error, caller)
    raise error
