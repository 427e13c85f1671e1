"""What the handlers of one server share."""

from typing import NamedTuple

from webai_api.limits import Limits
from webai_api.protocol import SessionStore
from webai_api.server.background import Background
from webai_api.server.lease import Turnstile
from webai_api.server.upstream.http import Client
from webai_api.server.upstream.registry import Registry
from webai_api.settings import ServerSettings

__all__ = ["Services", "Views"]

STORE_SECONDS = 2.0  # for a call to the store; whoever waits for an answer should rather repeat than wait longer


class Views(NamedTuple):
    """One tenant's key spaces: no id of another tenant can reach them, nor can a session's id reach the others."""

    sessions: SessionStore
    leases: SessionStore
    once: SessionStore
    unseen: SessionStore
    probe: SessionStore


class Services:
    """The store, the upstreams, and what holds requests together."""

    def __init__(self, settings: ServerSettings, store: SessionStore) -> None:
        self.settings = settings
        self.limits: Limits = settings.store.limits
        self.background = Background()
        self.turnstile = Turnstile(self.background)
        self.client = Client()
        self.registry = Registry(settings.upstreams, self.client)
        self._store = store
        self._views: dict[str | None, Views] = {}

    def views(self, tenant: str | None) -> Views:
        """Return the tenant's views of the store."""
        found = self._views.get(tenant)
        if found is None:
            names = "session", "lease", "idempotency", "unseen", "probe"
            found = Views(
                *(self._store.with_options(tenant=tenant, namespace=n, deadline=STORE_SECONDS) for n in names)
            )
            self._views[tenant] = found
        return found
