"""Every failure in OpenAI's envelope: ``{"error": {"message", "type", "param", "code"}}``."""

from collections.abc import Mapping

from webai_api.errors import (
    AuthenticationFailed,
    Conflict,
    CorruptData,
    DuplicateId,
    HistoryLost,
    IdReused,
    InvalidInput,
    NotDurable,
    OutcomeUnknown,
    SessionNotFound,
    StoreError,
    StoreUnavailable,
)

__all__ = ["ApiError", "api_error", "bad_request", "conversation_locked"]

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
RETRY_AFTER = "1"  # seconds; leases are short and stores come back quickly, and clients add a jitter of their own


class ApiError(Exception):
    """What the client is told: a status, OpenAI's four fields, and headers that go with them."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.kind = kind or TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """Return the body of the answer."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """Return the error of a request that can never be accepted as it is."""
    return ApiError(400, message, param=param, code=code)


def conversation_locked(message: str) -> ApiError:
    """Return the error of a turn that came while another one was under way; OpenAI's clients repeat it."""
    return ApiError(409, message, code="conversation_locked", headers={"Retry-After": RETRY_AFTER})


def api_error(error: BaseException) -> ApiError:
    """Return what the client is told of *error*: never more than it may know (no addresses, keys, tracebacks)."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, InvalidInput):
        return bad_request(str(error))
    if isinstance(error, SessionNotFound):
        return ApiError(404, str(error), code="session_not_found")
    if isinstance(error, Conflict):
        return conversation_locked(
            "The session was changed by another writer while the model answered; nothing was stored. Try again."
        )
    if isinstance(error, DuplicateId | IdReused):
        return ApiError(409, "Part of this turn is stored already under the same ids.", code="id_reused")
    if isinstance(error, StoreError):
        return _store_error(error)
    return ApiError(500, "The server failed to handle the request; its log has the details.", code="internal_error")


def _store_error(error: StoreError) -> ApiError:
    if isinstance(error, HistoryLost):
        return ApiError(500, str(error), code="history_lost")
    if isinstance(error, CorruptData):
        return ApiError(
            500, "The session's bookkeeping cannot be decoded; clear it to start afresh.", code="corrupt_data"
        )
    if isinstance(error, AuthenticationFailed):
        return ApiError(500, "The session store refused the server's credentials.", code="store_refused")
    retry = {"Retry-After": RETRY_AFTER}
    if isinstance(error, OutcomeUnknown | NotDurable):
        return ApiError(
            503,
            "The session store did not confirm the turn; it may have been stored.",
            code="outcome_unknown",
            headers=retry,
        )
    if isinstance(error, StoreUnavailable):
        return ApiError(
            503, "The session store does not answer; nothing was stored.", code="store_unavailable", headers=retry
        )
    return ApiError(500, "The session store failed.", code="store_error")
