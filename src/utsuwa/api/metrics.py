"""`/1.0/metrics`: the resource usage of running instances, for monitoring systems."""

from __future__ import annotations

from aiohttp import web

from utsuwa.api.http import Raw, Request, Result, Route
from utsuwa.core.scope import Scope
from utsuwa.security.authorization import Access, metrics_scope
from utsuwa.wire import metrics
from utsuwa.wire.metrics import Samples


async def get_metrics(request: Request) -> Result:
    scope = metrics_scope(request.caller, request.scope)
    project = request.project if request.query.get("project") else None
    if project is not None and scope.sees(project):
        await request.services.projects.check(project)
    samples = Samples()
    await request.services.instances.metrics(scope, project, samples)
    if not scope.restricted:
        _add_server(request, scope, samples)
    openmetrics = metrics.accepts_openmetrics(request.raw.headers.get("Accept", ""))
    response = web.Response(body=samples.render(openmetrics=openmetrics))
    response.headers["Content-Type"] = metrics.OPENMETRICS if openmetrics else metrics.TEXT
    return Raw(response)


def _add_server(request: Request, scope: Scope, samples: Samples) -> None:
    services = request.services
    running = sum(not operation.ended for operation in services.operations.all(scope))
    samples.add(metrics.OPERATIONS, running)
    samples.add(metrics.UPTIME, round(services.daemon.uptime, 3))
    samples.add(metrics.WARNINGS, services.warnings.unresolved)


ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/1.0/metrics",
        get_metrics,
        "Show metrics of running instances",
        Raw,
        access=Access.METRICS,
        description="In the text format of Prometheus, or OpenMetrics if the client accepts that; of one "
        "project with ?project=, otherwise of all that are visible.",
    ),
)
