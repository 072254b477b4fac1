"""Probes for whoever runs the server."""

from fastapi import APIRouter

from app.schemas import Health, Readiness
from app.service import ServiceOf

router = APIRouter(tags=["operations"])


@router.get("/healthz", summary="Is the process alive?")
async def healthz(service: ServiceOf) -> Health:
    """Answers as long as the event loop turns, and 500 where the work behind the routes has died: start the server anew then."""
    service.check_alive()
    return Health()


@router.get("/readyz", summary="Are the models loaded?")
async def readyz(service: ServiceOf) -> Readiness:
    """Requests are answered only once every model is loaded, verified and warmed."""
    return Readiness(device=str(service.device), models=list(service.store.names))
