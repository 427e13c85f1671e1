"""The HTTP server: OpenAI's API in front of any upstream, with sessions that are remembered.

`app.create_app` makes the ASGI application, `run.serve` serves it. Everything here is stateless but for connections:
what must outlive a request is in the store.
"""
