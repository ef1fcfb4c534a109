"""Typed errors, each with its code, HTTP status and exit status.

Belongs here: every error that a person or a script may see. Does not: rendering, which each
surface does once. A message says what is wrong and what to do next; it never holds a password.
"""

from typing import ClassVar


class AssetClassError(Exception):
    """Base of every error that this package raises on purpose."""

    code: ClassVar[str] = "INTERNAL_ERROR"
    http_status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 1


class InvalidOptionsError(AssetClassError):
    """An option is unknown, out of its range, or contradicts another one."""

    code = "INVALID_OPTIONS"
    http_status = 400
    exit_status = 2


class InvalidSettingsError(AssetClassError):
    """An `ASSETCLASS_*` setting cannot be used as it stands."""

    code = "INVALID_SETTINGS"
    http_status = 500
    exit_status = 2


class DatabaseUnavailableError(AssetClassError):
    """PostgreSQL cannot be reached, refuses the login, or went away."""

    code = "DATABASE_UNAVAILABLE"
    http_status = 503


class NoFreeConnectionError(DatabaseUnavailableError):
    """PostgreSQL is there, but has no connection left for another session."""


class EmbeddedServerError(AssetClassError):
    """The embedded PostgreSQL could not be set up, started or stopped."""

    code = "EMBEDDED_SERVER_FAILED"
    http_status = 503


class MarketTablesError(AssetClassError):
    """A market table, a column or a right is missing, or its kind is unsupported."""

    code = "MARKET_TABLES_UNUSABLE"
    http_status = 503


class SchemaNotReadyError(AssetClassError):
    """The pipeline's own schema is missing or not at the newest migration."""

    code = "SCHEMA_NOT_READY"
    http_status = 503


class OperationInProgressError(AssetClassError):
    """Another operation is active; only one may be."""

    code = "OPERATION_IN_PROGRESS"
    http_status = 409
    exit_status = 3

    def __init__(self, message: str, *, correction_id: str) -> None:
        super().__init__(message)
        self.correction_id = correction_id


class OperationNotFoundError(AssetClassError):
    """No operation has this correctionId."""

    code = "OPERATION_NOT_FOUND"
    http_status = 404
    exit_status = 4


class RowNotFoundError(AssetClassError):
    """The market table holds no row of this id, and no operation knows one."""

    code = "ROW_NOT_FOUND"
    http_status = 404
    exit_status = 4


class OperationStateError(AssetClassError):
    """The operation is in a state in which this cannot be done."""

    code = "OPERATION_STATE_CONFLICT"
    http_status = 409


class OperationFencedError(AssetClassError):
    """This process no longer owns the operation: it was taken over, cancelled or ended."""

    code = "OPERATION_FENCED"
    http_status = 409


class OperationCancelledError(AssetClassError):
    """The operation was cancelled between two batches; everything committed so far stays."""

    code = "OPERATION_CANCELLED"
    http_status = 409


class OperationTimedOutError(AssetClassError):
    """The operation used up its `timeout` and stopped between two batches."""

    code = "OPERATION_TIMED_OUT"
    http_status = 504


class CorrectionFailedError(AssetClassError):
    """Batches could not be written; everything committed so far stays and can be resumed."""

    code = "CORRECTION_FAILED"


class ErrorRateError(CorrectionFailedError):
    """The database refused too many rows; those stand in quarantine, each with its error."""

    code = "ERROR_RATE_EXCEEDED"


class IdempotencyKeyReusedError(AssetClassError):
    """An `Idempotency-Key` came again with another request than the first time."""

    code = "IDEMPOTENCY_KEY_REUSED"
    http_status = 409


class PreflightRefusedError(AssetClassError):
    """The market table is in a state in which correcting it would do harm."""

    code = "PREFLIGHT_REFUSED"
    http_status = 409


class NotUndoableError(AssetClassError):
    """A dry run, a correction without backup or without changes, or a rollback: nothing to undo."""

    code = "NOT_UNDOABLE"
    http_status = 400


class AlreadyRolledBackError(AssetClassError):
    """The correction was rolled back before."""

    code = "ALREADY_ROLLED_BACK"
    http_status = 409


class LaterCorrectionError(AssetClassError):
    """A later correction changed some of the same rows; it must be rolled back first."""

    code = "LATER_CORRECTION"
    http_status = 409

    def __init__(self, message: str, *, correction_id: str) -> None:
        super().__init__(message)
        self.correction_id = correction_id


class BackupExpiredError(AssetClassError):
    """The backup table was dropped: by its retention, or by hand."""

    code = "BACKUP_EXPIRED"
    http_status = 410


class BackupDamagedError(AssetClassError):
    """A backup table does not hold what was written into it."""

    code = "BACKUP_DAMAGED"
    http_status = 409


class ArchiveError(AssetClassError):
    """The file with the rows of a table cannot be written, or does not hold them."""

    code = "ARCHIVE_FAILED"


class AuditTamperedError(AssetClassError):
    """The hash chain of the audit log is broken: an entry was changed, removed or added."""

    code = "AUDIT_TAMPERED"
    http_status = 409


class AlertNotFoundError(AssetClassError):
    """No alert has this id."""

    code = "ALERT_NOT_FOUND"
    http_status = 404
    exit_status = 4


class AlertStateError(AssetClassError):
    """The alert is in a state in which this cannot be done."""

    code = "ALERT_STATE_CONFLICT"
    http_status = 409


class MaintenanceWindowNotFoundError(AssetClassError):
    """No maintenance window has this id."""

    code = "MAINTENANCE_WINDOW_NOT_FOUND"
    http_status = 404
    exit_status = 4


class NotificationError(AssetClassError):
    """A channel cannot be used, or did not take the message."""

    code = "NOTIFICATION_FAILED"


class UnauthorizedError(AssetClassError):
    """The caller shows no token, or none that is valid."""

    code = "UNAUTHORIZED"
    http_status = 401


class ForbiddenError(AssetClassError):
    """The caller's role may not do this."""

    code = "FORBIDDEN"
    http_status = 403


class PathNotFoundError(AssetClassError):
    """The API has nothing at this path."""

    code = "NOT_FOUND"
    http_status = 404


class MethodNotAllowedError(AssetClassError):
    """The path exists, but not with this method."""

    code = "METHOD_NOT_ALLOWED"
    http_status = 405


class SlowClientError(AssetClassError):
    """The body of the request did not arrive in time."""

    code = "REQUEST_TOO_SLOW"
    http_status = 408


class BodyTooLargeError(AssetClassError):
    """The body of the request is larger than any that the API can use."""

    code = "BODY_TOO_LARGE"
    http_status = 413


class UnsupportedMediaTypeError(AssetClassError):
    """The body of the request says that it is something other than JSON."""

    code = "UNSUPPORTED_MEDIA_TYPE"
    http_status = 415


class HeadTooLargeError(AssetClassError):
    """The request's address and headers are larger than the API reads."""

    code = "HEAD_TOO_LARGE"
    http_status = 431


class TooManyRequestsError(AssetClassError):
    """The caller has used up its requests; `retry_after` says when there are some again."""

    code = "TOO_MANY_REQUESTS"
    http_status = 429

    def __init__(self, message: str, *, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServerBusyError(AssetClassError):
    """Everything that could answer is in use, or the process is about to end."""

    code = "SERVER_BUSY"
    http_status = 503


class DeadlineExceededError(AssetClassError):
    """The answer took longer than a request may; the work on it was ended."""

    code = "DEADLINE_EXCEEDED"
    http_status = 503


class IdentityProviderError(AssetClassError):
    """The keys of the identity provider cannot be fetched, so its tokens cannot be checked."""

    code = "IDENTITY_PROVIDER_UNAVAILABLE"
    http_status = 503


class TokenNotFoundError(AssetClassError):
    """No token in use has this name."""

    code = "TOKEN_NOT_FOUND"
    http_status = 404
    exit_status = 4


class TokenExistsError(AssetClassError):
    """A token of this name exists and is not revoked."""

    code = "TOKEN_EXISTS"
    http_status = 409


class ReportFileError(AssetClassError):
    """A report cannot be written: the file exists, or the directory cannot be used."""

    code = "REPORT_NOT_WRITTEN"


class DemoDataError(AssetClassError):
    """The demo's source packages could not be fetched or do not hold what is expected."""

    code = "DEMO_DATA_UNAVAILABLE"


class ServicesError(AssetClassError):
    """The services of `up` cannot start, run already, or one of them does not stay alive."""

    code = "SERVICES_FAILED"
    http_status = 503
