"""The queue of jobs and its real worker processes: what ends a job, and what must not end the queue."""

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from app.errors import Conflict, UnknownJob
from app.index import Index
from app.jobs import JobService
from app.schemas.training import Job
from app.workers import WorkerSettings
from training import catalog
from training.contract import FINISHED, Finding, TrainConfig
from training.files import runs

SECONDS = 60.0
WIDTHS = {"generator_widths": [8], "discriminator_widths": [8], "latent_size": 4}


class Jobs:
    """A folder of jobs, and services of it that come and go as servers do."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "jobs"
        digests = folder / "digests"
        self.worker = WorkerSettings(folder / "datasets", folder / "weights", (folder / "models",), digests, threads=1, niceness=0)
        self.published: list[str] = []
        self.num_created = 0

    def create(self, **changes: object) -> str:
        """A queued job, as a server before this one left it."""
        values = {"name": "tiny", "architecture": "mlp", "options": WIDTHS, "total_images": 640, "num_evaluated": 0} | changes
        config = catalog.resolve(TrainConfig.model_validate(values), self.worker.datasets, self.worker.repositories)
        id = runs.new_id()
        self.num_created += 1
        runs.create(self.folder / id, config, id, place=self.num_created)
        return id

    def set_state(self, id: str, state: str) -> None:
        status = runs.read_status(self.folder / id)
        runs.write_status(self.folder / id, status.model_copy(update={"state": state}))

    async def on_published(self, model: str) -> None:
        self.published.append(model)

    def serve(self, scenario: Callable[[JobService], Awaitable[None]]) -> None:
        """A server's life."""

        async def life() -> None:
            index = Index(f"sqlite:///{self.folder.parent / 'index.sqlite'}", "here")
            service = JobService(self.folder, index, self.worker, self.on_published)
            await service.start()
            try:
                await scenario(service)
            finally:
                await service.close()

        asyncio.run(asyncio.wait_for(life(), SECONDS))


async def until(service: JobService, id: str, wanted: Callable[[Job], bool]) -> Job:
    while not wanted(job := await service.get(id)):
        await asyncio.sleep(0.05)
    return job


def is_finished(job: Job) -> bool:
    return job.state in FINISHED


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    return Jobs(tmp_path)


@pytest.fixture
def dying_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every worker dies before it can say a word: its Python does not find itself."""
    monkeypatch.setenv("PYTHONHOME", "/nowhere")


@pytest.mark.usefixtures("dying_workers")
@pytest.mark.parametrize("state", ["queued", "running"])
def test_a_job_whose_worker_dies_three_times_at_once_is_a_crash_loop(jobs: Jobs, state: str) -> None:
    id = jobs.create()
    jobs.set_state(id, state)

    async def scenario(service: JobService) -> None:
        job = await until(service, id, is_finished)
        assert job.state == "failed"
        assert job.message.startswith("crash loop: its worker died 3 times ")
        assert job.message.endswith("; log.txt may say why")
        assert job.finished_at is not None
        with pytest.raises(Conflict, match="is failed; a job can be cancelled while"):
            await service.cancel(id)

    jobs.serve(scenario)
    assert (jobs.folder / id / runs.LOG).read_text().count("encodings") >= 3, "three workers left their last words"


@pytest.mark.usefixtures("dying_workers")
def test_a_crash_loop_and_a_removed_folder_hold_up_no_other_job(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    ids = sorted(jobs.create() for _ in range(3))

    async def scenario(service: JobService) -> None:
        shutil.rmtree(jobs.folder / ids[0])  # before its turn: nothing has run between the start and this line
        for id in ids[1:]:
            assert (await until(service, id, is_finished)).message.startswith("crash loop")
        with pytest.raises(UnknownJob):
            await service.get(ids[0])

    jobs.serve(scenario)
    assert f"job {ids[0]} is left as it is" in caplog.text


@pytest.mark.usefixtures("dying_workers")
def test_a_server_that_stops_does_not_judge_its_jobs(jobs: Jobs) -> None:
    id = jobs.create()

    async def scenario(service: JobService) -> None:
        await asyncio.sleep(0)

    jobs.serve(scenario)
    assert runs.read_status(jobs.folder / id).state == "queued"


def test_a_job_whose_config_is_damaged_fails_with_a_sentence_and_stays_in_the_list(jobs: Jobs) -> None:
    id = jobs.create()
    (jobs.folder / id / runs.CONFIG).write_text('{"architecture": ')

    async def scenario(service: JobService) -> None:
        job = await until(service, id, is_finished)
        assert (job.state, job.attempts, job.config) == ("failed", 1, None)
        assert job.message
        assert "Traceback" not in job.message
        log = (jobs.folder / id / runs.LOG).read_text()
        assert "Traceback" in log
        assert job.log_end is not None
        assert log.endswith(job.log_end)
        assert "json_invalid" in job.log_end, "what went wrong stands at the end, however long the way there"
        assert [listed.id for listed in (await service.page(20, None)).jobs] == [id]

    jobs.serve(scenario)
    assert jobs.published == []


def test_what_went_wrong_in_a_run_is_in_the_jobs_answer(jobs: Jobs) -> None:
    id = jobs.create()
    found = Finding(kind="memorising", images=320, message="copies")
    status = runs.read_status(jobs.folder / id)
    runs.write_status(jobs.folder / id, status.model_copy(update={"state": "succeeded", "findings": (found,)}))

    async def scenario(service: JobService) -> None:
        assert (await service.get(id)).findings == [found]

    jobs.serve(scenario)


def test_a_running_job_survives_an_orderly_end_of_the_server_and_is_cancelled_by_the_next(jobs: Jobs) -> None:
    id = jobs.create(total_images=10**9)

    async def first(service: JobService) -> None:
        job = await until(service, id, lambda job: job.progress.images > 0)
        assert (job.state, job.attempts, job.position) == ("running", 1, None)

    jobs.serve(first)
    status = runs.read_status(jobs.folder / id)
    assert status.state == "queued"
    assert status.message == f"stopped after {status.progress.images:,} of 1,000,000,000 images; it goes on from there"

    async def second(service: JobService) -> None:
        job = await until(service, id, lambda job: job.progress.images > status.progress.images)
        assert (job.state, job.attempts) == ("running", 2)
        await service.cancel(id)
        job = await until(service, id, is_finished)
        assert job.state == "cancelled"
        assert job.message.startswith("cancelled after ")

    jobs.serve(second)
    log = (jobs.folder / id / runs.LOG).read_text()
    assert f"going on from the checkpoint at {status.progress.images:,} images" in log


def test_a_paused_job_lets_the_next_one_run_and_goes_on_from_where_it_was(jobs: Jobs) -> None:
    long, short = jobs.create(total_images=10**9), jobs.create()

    async def first(service: JobService) -> None:
        await until(service, long, lambda job: job.progress.images > 0)
        with pytest.raises(Conflict, match=f"job {long} is running; a job can be resumed while it is paused"):
            await service.resume(long)
        await service.pause(long)
        paused = await until(service, long, lambda job: job.state == "paused")
        assert paused.message == f"paused after {paused.progress.images:,} of 1,000,000,000 images"
        assert paused.position is None
        assert runs.checkpoint_images(jobs.folder / long) == paused.progress.images
        assert (await until(service, short, is_finished)).state == "succeeded"
        with pytest.raises(Conflict, match="is paused; a job can be paused while it is queued or running"):
            await service.pause(long)

    jobs.serve(first)
    seen = runs.read_status(jobs.folder / long).progress.images

    async def second(service: JobService) -> None:
        assert (await service.get(long)).state == "paused", "another server leaves it as it is"
        assert (await service.resume(long)).state == "queued"
        await until(service, long, lambda job: job.progress.images > seen)
        await service.pause(long)
        await service.cancel(long)  # the later wish, and the stronger one
        job = await until(service, long, is_finished)
        assert job.state == "cancelled"
        assert job.message.startswith("cancelled after ")

    jobs.serve(second)
    assert f"going on from the checkpoint at {seen:,} images" in (jobs.folder / long / runs.LOG).read_text()


def test_a_wish_to_pause_outlives_the_server_that_heard_it(jobs: Jobs) -> None:
    id = jobs.create()
    runs.ask_to_pause(jobs.folder / id)

    async def scenario(service: JobService) -> None:
        job = await until(service, id, lambda job: job.state == "paused")
        assert (job.message, job.attempts) == ("paused before it started", 0)
        assert (await service.cancel(id)).state == "cancelled"

    jobs.serve(scenario)


@pytest.mark.usefixtures("dying_workers")
def test_of_several_who_put_a_job_into_the_queue_one_does(jobs: Jobs) -> None:
    id = jobs.create()
    jobs.set_state(id, "cancelled")

    async def scenario(service: JobService) -> None:
        answers = await asyncio.gather(*(service.retry(id) for _ in range(5)), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["Conflict"] * 4 + ["Job"]

    jobs.serve(scenario)


@pytest.mark.usefixtures("dying_workers")
def test_a_failed_job_is_tried_again_and_its_deaths_are_counted_anew(jobs: Jobs) -> None:
    id = jobs.create()

    async def scenario(service: JobService) -> None:
        for _ in range(2):
            job = await until(service, id, is_finished)
            assert "its worker died 3 times" in job.message
            assert (await service.retry(id)).state == "queued"

    jobs.serve(scenario)


def test_a_cancelled_job_is_tried_again_and_then_removed(jobs: Jobs) -> None:
    id = jobs.create()

    async def scenario(service: JobService) -> None:
        with pytest.raises(Conflict, match="a job can be removed while it is paused or succeeded or failed or cancelled"):
            await service.remove(id)
        await service.cancel(id)
        assert (await until(service, id, is_finished)).state == "cancelled"
        await service.retry(id)
        assert (await until(service, id, is_finished)).state == "succeeded"
        await service.remove(id)
        with pytest.raises(UnknownJob):
            await service.get(id)
        assert [path.name for path in jobs.folder.rglob("*") if path.is_file()] == []

    jobs.serve(scenario)


def test_a_damaged_status_is_left_out_and_logged(jobs: Jobs, caplog: pytest.LogCaptureFixture) -> None:
    id = jobs.create()
    (jobs.folder / id / runs.STATUS).write_bytes(b"\x00")

    async def scenario(service: JobService) -> None:
        assert (await service.page(20, None)).jobs == []
        with pytest.raises(UnknownJob, match="is damaged"):
            await service.get(id)

    jobs.serve(scenario)
    assert f"job {id} cannot be read and is left out" in caplog.text
