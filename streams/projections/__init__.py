"""The projections: history, output CSV, webhooks. ``faust -A streams.projections worker`` runs the app."""

from typing import Any


def __getattr__(name: str) -> Any:
    # Only a worker needs the app: the API imports the queries and must not start one.
    if name == "app":
        from streams.projections.app import app

        return app
    raise AttributeError(name)
