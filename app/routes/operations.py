"""Probes for whoever runs the server."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from app.metrics import MEDIA_TYPE
from app.schemas.operations import Health, Readiness
from app.service import ServiceOf

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz(service: ServiceOf) -> Health:
    """Answers as long as the event loop turns, and 500 where the work behind the routes has died: start the server anew then."""
    service.check_alive()
    return Health()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Not all of them yet"}}, summary="Are the models loaded?")
async def readyz(service: ServiceOf, response: Response) -> Readiness:
    """503 until every model that is to be loaded is verified and warmed, and 200 from then on: while a newer version loads, the one before
    it serves. Models can be asked for from the start; who comes too early waits."""
    store = service.store
    response.status_code = 200 if store.is_ready else 503
    loading = list(store.loading)
    return Readiness(
        status="ready" if store.is_ready else "loading",
        device=str(service.device),
        models=[name for name in store.names if name not in loading],
        loading=loading,
    )


@router.get("/metrics", response_class=PlainTextResponse, summary="Figures for Prometheus")
async def metrics(service: ServiceOf) -> Response:
    """Queues, batches, times, refusals, by model and version; requests by route and status. Wants the key where there is one."""
    return Response(service.metrics.text(), media_type=MEDIA_TYPE)
