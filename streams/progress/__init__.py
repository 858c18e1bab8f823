"""The progress of each request. ``faust -A streams.progress worker`` runs the app."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Only a worker needs the app: the API imports the fold and the view and must not start one.
    if name == "app":
        from streams.progress.app import app

        return app
    raise AttributeError(name)
