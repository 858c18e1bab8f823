"""Probes and metrics: that the process lives, that it may be sent work, and what it does all day."""

from http import HTTPStatus

from aiohttp import web
from prometheus_client import CollectorRegistry

from api.context import CONTEXT
from api.routes import Answer, Route
from infra.probes import health_answer, metrics_answer
from infra.readiness import ALIVE, Health

METRICS = web.AppKey("metrics", CollectorRegistry)


async def healthz(request: web.Request) -> web.Response:
    return health_answer(ALIVE)


async def readyz(request: web.Request) -> web.Response:
    return health_answer(request.app[CONTEXT].readiness.health())


async def metrics(request: web.Request) -> web.Response:
    return metrics_answer(request, request.app[METRICS])


def routes() -> list[Route]:
    return [
        Route(
            "GET",
            "/healthz",
            healthz,
            tag="Probes",
            summary="Tell that the process lives",
            answers={HTTPStatus.OK: Answer("It lives", {"application/json": Health})},
            needs_key=False,
        ),
        Route(
            "GET",
            "/readyz",
            readyz,
            tag="Probes",
            summary="Tell whether this process may be sent work, and if not, why",
            description="Kafka, Cassandra and the storage are asked in the background, so that this answers at once.",
            answers={
                HTTPStatus.OK: Answer("It may", {"application/json": Health}),
                HTTPStatus.SERVICE_UNAVAILABLE: Answer("It may not just now", {"application/json": Health}),
            },
            needs_key=False,
        ),
        Route(
            "GET",
            "/metrics",
            metrics,
            tag="Probes",
            summary="Tell Prometheus what this process does",
            description="Sums only: no label is an id, a host or a URL. OpenMetrics for who asks for that.",
            answers={
                HTTPStatus.OK: Answer(
                    "The metrics of this process", {"text/plain": str, "application/openmetrics-text": str}
                )
            },
            needs_key=False,
        ),
    ]
