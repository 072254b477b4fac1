"""Start training, watch it, end it."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response

from app.index import Filter
from app.schemas.common import MAX_JSON_BYTES
from app.schemas.training import Architectures, Job, Jobs, TrainRequest
from app.service import ADMINISTRATIVE, ServiceOf
from app.trainable import describe_catalog
from training.contract import JobState

router = APIRouter(tags=["training"], dependencies=[ADMINISTRATIVE])
Key = Annotated[str | None, Header(min_length=1, max_length=255, description="A name of the client's own for this request.")]
Priority = Annotated[int, Query(ge=-100, le=100, description="Jobs of a higher one go first.")]
States = Annotated[list[JobState], Query(description="Jobs in one of these states.")]
Word = Annotated[str | None, Query(max_length=63, pattern=r"^[A-Za-z0-9._-]+$")]
JobId = Annotated[str, Query(pattern=r"^\d{8}-\d{6}-[0-9a-f]{12}$", description="The id of a job; the page begins behind it.")]


@router.post("/train", status_code=202, max_body_size=MAX_JSON_BYTES, summary="Train a model in the background")
async def train(body: TrainRequest, service: ServiceOf, response: Response, idempotency_key: Key = None, priority: Priority = 0) -> Job:
    """The config is checked against its data set, the job made durable and queued. Its model is served when it ends.

    Who cannot know whether a request was heard sends it again with the same `Idempotency-Key`, a name of the client's own: the answer is
    the job that the first one made.
    """
    job = await service.jobs.submit(body, idempotency_key, priority)
    response.headers["Location"] = f"/jobs/{job.id}"
    return job


@router.get("/jobs", summary="List the training jobs")
async def list_jobs(
    service: ServiceOf,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: JobId | None = None,
    state: States = [],  # noqa: B006
    model: Word = None,
    architecture: Word = None,
    dataset: Word = None,
) -> Jobs:
    """Newest first; `after` is an id, and the page begins behind it. `state` may be given several times; `model` is the name that a job
    publishes under."""
    return await service.jobs.page(limit, after, Filter(tuple(state), model, architecture, dataset))


@router.get("/jobs/{id}", summary="Look at a training job")
async def show_job(id: str, service: ServiceOf) -> Job:
    """State, place in the queue, progress, losses, and the config with every default resolved."""
    return await service.jobs.get(id)


@router.post("/jobs/{id}/cancel", status_code=202, summary="End a training job")
async def cancel_job(id: str, service: ServiceOf) -> Job:
    """A queued or paused job ends at once, a running one within a second or a step; its last checkpoint is kept."""
    return await service.jobs.cancel(id)


@router.post("/jobs/{id}/pause", status_code=202, summary="Let a training job wait")
async def pause_job(id: str, service: ServiceOf) -> Job:
    """A running job is paused once its worker has kept a checkpoint, within a second or a step; the next in the queue begins."""
    return await service.jobs.pause(id)


@router.post("/jobs/{id}/resume", status_code=202, summary="Go on with a paused training job")
async def resume_job(id: str, service: ServiceOf) -> Job:
    """At the end of the queue; it ends with the bits that it would have had without the pause."""
    return await service.jobs.resume(id)


@router.post("/jobs/{id}/retry", status_code=202, summary="Go on with a failed or cancelled training job")
async def retry_job(id: str, service: ServiceOf) -> Job:
    """At the end of the queue, from its last checkpoint, where there is one."""
    return await service.jobs.retry(id)


@router.delete("/jobs/{id}", status_code=204, summary="Remove a training job from the disk")
async def remove_job(id: str, service: ServiceOf) -> None:
    """Its log, figures, samples and checkpoints, and not what it published. It must not be queued or running: cancel it first."""
    await service.jobs.remove(id)


@router.get("/architectures", summary="What can be trained")
async def list_architectures(service: ServiceOf) -> Architectures:
    """Architectures, losses and penalties with the JSON schemas of their options, and the data sets."""
    return await service.pool.run(lambda: describe_catalog(service.settings.datasets))
