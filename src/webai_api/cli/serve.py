"""``webai-api serve``."""

from argparse import Namespace
from dataclasses import replace

from webai_api.settings import EMBEDDED_STORE, ServerSettings

__all__ = ["run"]


def run(arguments: Namespace) -> int:
    """Serve until a signal ends it."""
    settings = ServerSettings.from_env()
    if arguments.store:
        settings = settings.with_store(arguments.store)
    elif arguments.embedded and settings.store.store_url is None:
        settings = settings.with_store(EMBEDDED_STORE)
    settings = replace(
        settings,
        host=settings.host if arguments.host is None else arguments.host,
        port=settings.port if arguments.port is None else arguments.port,
    )
    try:
        from webai_api.server.run import serve
    except ImportError as error:
        raise ImportError("webai-api serve needs: pip install 'webai-api[server]'") from error
    return serve(settings, workers=arguments.workers)
