"""The stores. They do not know each other; `webai_api.urls` picks one by the scheme of a URL."""
