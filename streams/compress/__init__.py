"""Fetches, compresses and stores images. ``faust -A streams.compress worker`` runs the app."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Only a worker needs the app: a decoder process imports the codec and nothing else.
    if name == "app":
        from streams.compress.app import app

        return app
    raise AttributeError(name)
