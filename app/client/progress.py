"""A bar that shows how far a job is."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from app.schemas.training import Job

Tell = Callable[[Job], None]


@contextmanager
def bar() -> Iterator[Tell]:
    """What `wait` may be given as `progress`, for as long as the block takes: a bar of images on a terminal, with the time left."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[left]}"))
    with Progress(*columns) as shown:
        task = shown.add_task("queued", total=None, left="")

        def tell(job: Job) -> None:
            progress = job.progress
            left = "" if progress.seconds_left is None else f"{progress.seconds_left:,.0f} s left"
            shown.update(task, description=job.state, completed=progress.images, total=progress.total_images, left=left)

        yield tell
