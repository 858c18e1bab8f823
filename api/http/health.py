"""Liveness probe, readiness probe and metrics."""

from http import HTTPStatus

from aiohttp import web
from prometheus_client import CollectorRegistry

from api.context import CONTEXT
from api.contract.routes import Response, Route
from infra.observability.probes import health_answer, metrics_answer
from infra.observability.readiness import ALIVE, Health

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
            summary="Liveness probe",
            responses={HTTPStatus.OK: Response("The process is alive", {"application/json": Health})},
            needs_key=False,
        ),
        Route(
            "GET",
            "/readyz",
            readyz,
            tag="Probes",
            summary="Readiness probe with the failing checks",
            description="Kafka, Cassandra and the storage are checked in the background; the probe answers at once.",
            responses={
                HTTPStatus.OK: Response("Ready", {"application/json": Health}),
                HTTPStatus.SERVICE_UNAVAILABLE: Response("Not ready", {"application/json": Health}),
            },
            needs_key=False,
        ),
        Route(
            "GET",
            "/metrics",
            metrics,
            tag="Probes",
            summary="Prometheus metrics",
            description="Aggregates only: no label is an id, a host or a URL. OpenMetrics by content negotiation.",
            responses={
                HTTPStatus.OK: Response(
                    "The metrics of this process", {"text/plain": str, "application/openmetrics-text": str}
                )
            },
            needs_key=False,
        ),
    ]
