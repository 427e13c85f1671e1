"""Which upstream serves a model: the one with the most specific glob."""

import asyncio
import re
from collections.abc import Sequence
from fnmatch import translate
from typing import NamedTuple

from webai_api.server.errors import ApiError, bad_request
from webai_api.server.upstream import Upstream
from webai_api.server.upstream.demo import DEMO, DemoUpstream
from webai_api.server.upstream.http import Client, HttpUpstream
from webai_api.settings import UpstreamSettings

__all__ = ["Registry", "check_model"]

KEYLESS = frozenset({"gemini", "openai"})  # of no use without a key; other services may do without
REFUSED = {"gemini": frozenset({"store", "metadata"})}  # seen: 400 'Unknown name' for them
CACHE_SECONDS = 60.0
MODEL_CHARS = 256


class _Route(NamedTuple):
    glob: str
    pattern: re.Pattern[str]
    settings: UpstreamSettings
    upstream: HttpUpstream


class Registry:
    """All upstreams, `demo` included."""

    def __init__(self, settings: Sequence[UpstreamSettings], client: Client) -> None:
        self._demo = DemoUpstream()
        self._routes: list[_Route] = []
        for upstream in settings:
            http = HttpUpstream(upstream, client, refused=REFUSED.get(upstream.name, frozenset()))
            self._routes += [_Route(glob, re.compile(translate(glob)), upstream, http) for glob in upstream.models]
        self._routes.sort(key=lambda route: _specificity(route.glob), reverse=True)  # stable: configured ones first
        self._listed: tuple[float, dict[str, str]] | None = None

    def find(self, model: str) -> Upstream:
        """Return the upstream that serves *model*.

        Raises:
            ApiError: 404 `model_not_found`; 400, its provider has no key (names the variable).
        """
        if model == DEMO:
            return self._demo
        route = self._route(model)
        if route is None:
            raise ApiError(404, f"The model {model!r} does not exist here.", code="model_not_found", param="model")
        if not _usable(route.settings):
            raise bad_request(
                f"The model {model!r} is served by {route.settings.name}, which needs a key: set "
                f"{route.settings.key_variable} and restart, or name the model in WEBAI_UPSTREAM_<NAME>_MODELS.",
                code="provider_not_configured",
                param="model",
            )
        return route.upstream

    def names(self, model: str) -> bool:
        """Tell whether *model* belongs to an upstream by more than a glob for everything."""
        return (route := self._route(model)) is not None and _specificity(route.glob) > (False, 0)

    async def models(self) -> dict[str, str]:
        """Return the models that can be asked for, and whose they are; an upstream that does not answer adds few."""
        now = asyncio.get_running_loop().time()
        if self._listed is None or self._listed[0] < now:
            upstreams = list({id(r.upstream): r.upstream for r in self._routes if _usable(r.settings)}.values())
            found = {DEMO: "webai-api"}
            for route in self._routes:
                if _usable(route.settings) and _is_name(route.glob):
                    found[route.glob] = route.settings.name
            for upstream, names in zip(upstreams, await asyncio.gather(*(u.models() for u in upstreams)), strict=True):
                for name in names:
                    if name not in found and (best := self._route(name)) and best.upstream is upstream:
                        found[name] = upstream.name
            self._listed = now + CACHE_SECONDS, found
        return self._listed[1]

    def _route(self, model: str) -> _Route | None:
        return next((route for route in self._routes if route.pattern.match(model)), None)


def check_model(model: object) -> str:
    """Return *model* if it can name one.

    Raises:
        ApiError: 400.
    """
    if not isinstance(model, str) or not model.strip() or len(model) > MODEL_CHARS or not model.isprintable():
        raise bad_request(f"model must be a name of 1 to {MODEL_CHARS} printable characters.", param="model")
    return model


def _usable(settings: UpstreamSettings) -> bool:
    return settings.key is not None or settings.name not in KEYLESS


def _is_name(glob: str) -> bool:
    return not any(c in glob for c in "*?[")


def _specificity(glob: str) -> tuple[bool, int]:
    return _is_name(glob), sum(c not in "*?[]" for c in glob)
