"""The guide's logger: this package's, under its import path."""

import logging

__all__ = ["logger"]

logger = logging.getLogger("webai_api")
