"""Puts the service together: `create_app(settings)`. No file is touched before the lifespan."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from app import docs, errors
from app.guard import Guard
from app.metrics import Metrics
from app.reception import Reception
from app.routes import augmentation, datasets, inference, models, operations, protocol, training, watching
from app.service import running
from app.settings import Settings

_DESCRIPTION = """\
Generative adversarial networks, trained and served: sample images, walk between latents, score pictures, train in the background.
Image *i* of a request has seed `seed + i`, and the same version and seed give the same pixels in any batch, before and after a restart.
Mistakes are answered as `application/problem+json` (RFC 9457).
"""


_INFERENCE = (inference.router, augmentation.router, protocol.inference_router)
_OTHERS = (
    models.router,
    datasets.router,
    training.router,
    watching.router,
    watching.streams,
    operations.router,
    protocol.router,
    docs.router,
)
# last words of their paths
_WANTING_IMAGES = frozenset(
    route.path.rpartition("/")[2] for router in _INFERENCE for route in router.routes if isinstance(route, APIRoute)
)


def create_app(settings: Settings) -> FastAPI:
    """The ASGI application; its lifespan loads the models and starts the jobs."""
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with running(settings, metrics) as service:
            app.state.service = service
            yield

    app = FastAPI(
        title="ganserve",
        version=version("ganserve"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    errors.install(app)
    app.add_middleware(Guard, settings=settings)
    app.add_middleware(
        Reception, settings=settings, metrics=metrics, wanting_images=_WANTING_IMAGES, streamed=frozenset({datasets.UPLOAD})
    )  # around the guard: what it refuses is counted too
    for router in (*_INFERENCE, *_OTHERS):
        app.include_router(router)
    app.mount("/_swagger", StaticFiles(packages=[("fastapi_swagger", "resources")]))
    docs.install(app)
    return app
