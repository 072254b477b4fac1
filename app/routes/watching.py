"""Watch a training job: its figures, its sample grids as they become pictures, its log."""

from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Query, Response
from fastapi.responses import FileResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from app import watching
from app.schemas.training import JobMetrics
from app.service import ADMINISTRATIVE, ServiceOf
from app.streaming import Watch

MAX_LOG_BYTES = 1_000_000
PNG, GIF, TEXT = "image/png", "image/gif", "text/plain"

router = APIRouter(tags=["training"], dependencies=[ADMINISTRATIVE])
streams = APIRouter(tags=["training"])  # they stay for hours, and have a room of their own
Images = Annotated[int, Path(ge=0, lt=10**12, description="One of `samples` of GET /jobs/{id}/metrics.")]


def _content(media_type: str) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {media_type: {}}}}


@router.get("/jobs/{id}/metrics", summary="What a job has measured")
async def metrics(id: str, service: ServiceOf, after: Annotated[int | None, Query(ge=0)] = None) -> JobMetrics:
    """Losses and evaluations, oldest first; with `after`, those of more images than that. A job that goes on from a checkpoint takes the
    lines behind it back and writes them again."""
    folder = await service.jobs.folder(id)
    return await service.pool.run(lambda: watching.metrics(folder, after))


@router.get("/jobs/{id}/samples.png", response_class=FileResponse, summary="A job's newest samples")
async def newest_samples(id: str, service: ServiceOf) -> FileResponse:
    """The same latents each time, as the generator's average makes them now."""
    return FileResponse(watching.samples(await service.jobs.folder(id)), media_type=PNG)


@router.get("/jobs/{id}/samples/{images}.png", response_class=FileResponse, summary="A job's samples after so many images")
async def samples(id: str, images: Images, service: ServiceOf) -> FileResponse:
    """The same latents as in every other grid of the job."""
    return FileResponse(watching.samples(await service.jobs.folder(id), images), media_type=PNG)


@router.get("/jobs/{id}/progress.gif", response_class=Response, responses=_content(GIF), summary="A job's samples through time")
async def progress(id: str, service: ServiceOf) -> Response:
    """Every grid of the job, at most a hundred of them, as an animation."""
    folder = await service.jobs.folder(id)
    return Response(await service.pool.run(lambda: watching.progress(folder), watching.MAX_FRAMES), media_type=GIF)


@router.get("/jobs/{id}/summary.png", response_class=FileResponse, summary="A job in one picture")
async def summary(id: str, service: ServiceOf) -> FileResponse:
    """Curves of losses and evaluations, a row of samples through time, and what was found to go wrong."""
    return FileResponse(watching.summary(await service.jobs.folder(id)), media_type=PNG)


@router.get("/jobs/{id}/log", response_class=Response, responses=_content(TEXT), summary="The end of a job's log")
async def log(
    id: str, service: ServiceOf, num_bytes: Annotated[int, Query(ge=1, le=MAX_LOG_BYTES, description="At most so many.")] = 65_536
) -> Response:
    """Whole lines, oldest first."""
    folder = await service.jobs.folder(id)
    return Response(await service.pool.run(lambda: watching.log(folder, num_bytes)), media_type=f"{TEXT}; charset=utf-8")


LastEventId = Annotated[int, Header(alias="Last-Event-ID", ge=0, lt=10**12, description="The number of the last event that was seen.")]
After = Annotated[int | None, Query(ge=0, lt=10**12, description="The same, for clients that cannot set a header.")]


async def _watch(id: str, service: ServiceOf, last_event_id: LastEventId = 0, after: After = None) -> AsyncIterator[Watch]:
    with service.watchers.holding(1):
        yield await Watch.of(id, service.jobs, service.stopping, last_event_id if after is None else after)


@streams.get("/jobs/{id}/events", response_class=EventSourceResponse, summary="Watch a job as it goes")
async def events(watch: Annotated[Watch, Depends(_watch)]) -> AsyncIterator[ServerSentEvent]:
    """Server-sent events. The numbered ones are kept with the job: `state`, `metrics`, `sample`, `finding`, and `rewound` where a job goes
    on from a checkpoint, so that metrics and findings of more `images` count no longer. Their ids are 1, 2, 3 and so on without a gap, and
    `Last-Event-ID` goes on behind any of them. In between, `progress` says how far the job is, about once a second. The last one is `end`
    when the job is over, or `shutdown` when the server is: connect again later."""
    async for event in watch:
        yield event
