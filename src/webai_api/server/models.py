"""GET /v1/models and /v1/models/{id}: what can be asked for here."""

from webai_api.server.errors import ApiError
from webai_api.server.http import Exchange, Request
from webai_api.server.services import Services
from webai_api.server.wire import encode

__all__ = ["MODELS", "ModelsHandler"]

MODELS = "/v1/models"


class ModelsHandler:
    """Lists models, or describes the one whose id (which may contain slashes) follows in the path."""

    def __init__(self, services: Services) -> None:
        self._registry = services.registry

    async def __call__(self, request: Request, exchange: Exchange) -> None:
        """Answer one request."""
        models = await self._registry.models()
        wanted = request.path.removeprefix(MODELS).removeprefix("/")
        if not wanted:
            listed = [_model(name, owner) for name, owner in models.items()]
            await exchange.reply(200, encode({"object": "list", "data": listed}))
            return
        owner = models.get(wanted)
        if owner is None:
            # Its provider may not list it, or not answer now. Asking for an answer would tell.
            owner = self._registry.find(wanted).name
            if not self._registry.names(wanted):
                raise ApiError(404, f"The model {wanted!r:.200} does not exist here.", code="model_not_found")
        await exchange.reply(200, encode(_model(wanted, owner)))


def _model(name: str, owner: str) -> dict[str, str | int]:
    return {"id": name, "object": "model", "created": 0, "owned_by": owner}
