"""Who may ask: API keys, and the hosts a browser may believe us to be."""

import hmac
import logging
from collections.abc import Sequence
from hashlib import sha256

from webai_api.server.errors import ApiError, bad_request
from webai_api.server.http import Request

__all__ = ["Hosts", "Keys"]

_logger = logging.getLogger("webai_api.server")


class Keys:
    """API keys, held as digests. Without any, everybody may ask and has no tenant."""

    def __init__(self, digests: Sequence[tuple[str, bytes]]) -> None:
        self._digests = digests

    def tenant(self, request: Request) -> str | None:
        """Return the tenant whose key the request brings.

        Raises:
            ApiError: 401, there is no valid key; 400, there are several.
        """
        if not self._digests:
            return None
        values = request.values(b"authorization")
        if len(values) > 1:
            raise bad_request("The header Authorization may be given once only.")
        scheme, _, key = (values[0] if values else b"").partition(b" ")
        digest = sha256(key.strip()).digest()
        found: str | None = None
        for tenant, known in self._digests:  # all of them, so that the time tells nothing
            if hmac.compare_digest(known, digest):
                found = tenant
        if found is None or scheme.lower() != b"bearer":
            _logger.warning("a request from %s was refused: %s", request.client, "bad key" if values else "no key")
            raise _unauthorized(given=bool(values))
        return found


def _unauthorized(*, given: bool) -> ApiError:
    message = "The API key is not valid." if given else "An API key is needed: send Authorization: Bearer KEY."
    return ApiError(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


class Hosts:
    """The names a request may call us by.

    A server without keys listens on loopback only; a page in a browser could still reach it under a name of its own
    that resolves to 127.0.0.1 (DNS rebinding). So only loopback's own names are answered then.
    """

    def __init__(self, *, configured: str, open_to_all: bool) -> None:
        own = configured.strip("[]").lower()
        self._names = None if open_to_all else {b"localhost", b"127.0.0.1", b"[::1]", own.encode(), f"[{own}]".encode()}

    def check(self, request: Request) -> None:
        """Refuse a request for another host.

        Raises:
            ApiError: 403.
        """
        if self._names is None:
            return
        host = (request.value(b"host") or b"").strip().lower()
        name = host[: host.find(b"]") + 1] if host.startswith(b"[") else host.partition(b":")[0]
        if name not in self._names:
            raise ApiError(
                403,
                "This server has no API keys, so it answers only to localhost, 127.0.0.1 and [::1]; "
                "set WEBAI_API_KEYS to use another name.",
                code="host_not_allowed",
            )
