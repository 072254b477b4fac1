"""What the batcher promises: everyone gets his own rows, soon, and nobody pays for those who have left."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import torch
from torch import Tensor

from app.batcher import MAX_IMAGES_AHEAD, Batcher
from app.engine import Engine, ModuleName, num_rows
from app.errors import Overloaded
from app.metrics import Metrics
from app.pools import Pool
from app.turns import Lane, Piece, Request
from app.visits import Visit, visiting
from training.contract import Manifest

CPU = torch.device("cpu")


@dataclass
class Log:
    """What the engine was given to run."""

    batches: list[tuple[ModuleName, int]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)  # of each batch, its first input
    threads: set[str] = field(default_factory=set)

    @property
    def sizes(self) -> list[int]:
        return [size for _, size in self.batches]

    def batch_of(self, row: Tensor) -> int:
        """The place of the batch that a row was in."""
        return next(place for place, rows in enumerate(self.rows) if (rows == row).all(1).any())


class LoggingEngine(Engine):
    """The real engine, which writes down what it runs."""

    log: Log

    def run(self, module: ModuleName, inputs: Mapping[str, Tensor]) -> Tensor:
        self.log.batches.append((module, num_rows(inputs)))
        self.log.rows.append(next(iter(inputs.values())))
        self.log.threads.add(threading.current_thread().name)
        return super().run(module, inputs)


@pytest.fixture
def engine(make_version: Callable[..., Manifest], repository: Path) -> LoggingEngine:
    engine = LoggingEngine.load(repository / "tiny/1", make_version(repository, "tiny"), CPU)
    engine.log = Log()
    return engine


def latents(count: int, seed: int = 0) -> dict[str, Tensor]:
    return {"latent": torch.randn((count, 8), generator=torch.Generator().manual_seed(seed))}


def images(count: int, seed: int = 0) -> dict[str, Tensor]:
    return {"image": torch.rand((count, 1, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1}


def expected(engine: Engine, inputs: dict[str, Tensor], module: ModuleName = "generator") -> Tensor:
    """What the engine gives row by row, in no one's company."""
    rows = [{name: values[row : row + 1] for name, values in inputs.items()} for row in range(num_rows(inputs))]
    return torch.cat([Engine.run(engine, module, row) for row in rows])


@asynccontextmanager
async def busy(batcher: Batcher) -> AsyncIterator[None]:
    """The engine's thread has other work to the end of the block."""
    gate = threading.Event()
    work = asyncio.create_task(batcher.run_on_thread(lambda: gate.wait(60)))
    await asyncio.sleep(0)
    try:
        yield
    finally:
        gate.set()
        await work


async def start(*work: Awaitable[Tensor]) -> list["asyncio.Task[Tensor]"]:
    async def wait_for(one: Awaitable[Tensor]) -> Tensor:
        return await one

    tasks = [asyncio.create_task(wait_for(one)) for one in work]
    await asyncio.sleep(0)
    return tasks


def run(main: Callable[[Batcher], Awaitable[None]], capacity_images: int = 4096, num_threads: int | None = 1) -> None:
    async def whole() -> None:
        batcher = Batcher(capacity_images, num_threads)
        try:
            await main(batcher)
        finally:
            await batcher.aclose()

    asyncio.run(whole())


# --- answers ------------------------------------------------------------------------------------------------------------------


def test_each_of_many_concurrent_requests_gets_its_own_rows(engine: LoggingEngine) -> None:
    dice = Random(1)  # noqa: S311
    requests = [latents(dice.choice([1, 2, 5, 16, 63, 64, 65, 200]), seed) for seed in range(40)]

    async def main(batcher: Batcher) -> None:
        answers = await asyncio.gather(*(batcher.submit(engine, "generator", inputs) for inputs in requests))
        for inputs, answer in zip(requests, answers, strict=True):
            assert torch.equal(answer, expected(engine, inputs))
        assert batcher.queued_images == 0
        assert sum(engine.log.sizes) == sum(map(num_rows, requests))

    run(main)


def test_a_request_alone_goes_at_once_and_alone(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        for seed in range(3):
            assert torch.equal(await batcher.submit(engine, "generator", latents(1, seed)), expected(engine, latents(1, seed)))
        assert engine.log.sizes == [1, 1, 1]

    run(main)


def test_what_arrives_while_the_engine_works_goes_in_one_batch(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            tasks = await start(*(batcher.submit(engine, "generator", latents(4, seed)) for seed in range(5)))
            assert batcher.queued_images == 20
        await asyncio.gather(*tasks)
        assert engine.log.sizes == [20]

    run(main)


def test_what_arrives_in_one_turn_of_the_event_loop_goes_in_one_batch(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        await asyncio.gather(*(batcher.submit(engine, "generator", latents(4, seed)) for seed in range(5)))
        assert engine.log.sizes == [20]

    run(main)


def test_no_batch_is_larger_than_64_and_none_smaller_than_it_must_be(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            tasks = await start(*(batcher.submit(engine, "generator", latents(9, seed)) for seed in range(30)))
        await asyncio.gather(*tasks)
        assert engine.log.sizes == [64, 64, 64, 64, 14]

    run(main)


def test_generator_and_discriminator_take_turns_and_never_share_a_batch(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            scores, pictures = await start(
                batcher.submit(engine, "discriminator", images(150)), batcher.submit(engine, "generator", latents(150))
            )
        assert torch.equal(await scores, expected(engine, images(150), "discriminator"))
        assert torch.equal(await pictures, expected(engine, latents(150)))
        assert [module for module, _ in engine.log.batches] == ["discriminator", "generator"] * 3

    run(main)


# --- fairness -----------------------------------------------------------------------------------------------------------------


def test_one_image_does_not_wait_for_256(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            *large, small = await start(
                *(batcher.submit(engine, "generator", latents(256, seed)) for seed in range(3)),
                batcher.submit(engine, "generator", latents(1, 9)),
            )
        answer = await small
        assert engine.log.batch_of(latents(1, 9)["latent"][0]) <= 1
        assert torch.equal(answer, expected(engine, latents(1, 9)))
        for seed, task in enumerate(large):
            assert torch.equal(await task, expected(engine, latents(256, seed)))

    run(main)


def test_a_large_request_is_not_starved_by_small_ones(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        large = asyncio.create_task(batcher.submit(engine, "generator", latents(256)))
        small = 0
        while not large.done():
            await asyncio.gather(*(batcher.submit(engine, "generator", latents(1, seed)) for seed in range(100)))
            small += 100
        assert small <= 1500  # with fair turns, each batch of 64 holds at least 16 / (100 + 16) of it

    run(main)


def test_one_image_goes_with_the_next_batch_however_many_have_begun(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        large = [asyncio.create_task(batcher.submit(engine, "generator", latents(256, seed))) for seed in range(16)]
        while len(engine.log.batches) < 8:  # each has had a turn, or nearly
            await asyncio.sleep(0)
        async with busy(batcher):
            (small,) = await start(batcher.submit(engine, "generator", latents(1, 99)))
            ran = len(engine.log.batches)
        await small
        assert engine.log.batch_of(latents(1, 99)["latent"][0]) <= ran + 1  # one may have been before the other work
        await asyncio.gather(*large)

    run(main)


def test_a_batch_is_shared_by_those_that_come_and_those_that_have_begun(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        large = asyncio.create_task(batcher.submit(engine, "generator", latents(2560)))
        while not engine.log.batches:
            await asyncio.sleep(0)
        async with busy(batcher):
            small = await start(*(batcher.submit(engine, "generator", latents(1, seed)) for seed in range(1, 1001)))
            ran = len(engine.log.batches)
        await asyncio.gather(large, *small)
        assert engine.log.batch_of(latents(1, 1000)["latent"][0]) <= ran + 33  # half of each batch is theirs
        assert engine.log.batch_of(latents(2560)["latent"][-1]) <= 60

    run(main)


def lane(*counts: int, begun: tuple[int, ...] = ()) -> Lane:
    loop = asyncio.new_event_loop()

    def request(count: int) -> Request:
        return Request({}, count, count, loop.create_future())

    made = Lane(deque(map(request, counts)), deque(map(request, begun)))
    loop.close()
    return made


def sizes_of(pieces: list[Piece]) -> list[int]:
    return [piece.stop - piece.start for piece in pieces]


def test_batches_of_a_large_request_are_no_longer_than_a_turn() -> None:
    waiting = lane(256)
    assert [sizes_of(waiting.fill((4, 8, 16), turn_rows=8)) for _ in range(32)] == [[8]] * 32
    assert not waiting


def test_few_rows_share_a_small_batch_with_a_large_request() -> None:
    waiting = lane(1, begun=(200,))
    assert sizes_of(waiting.fill((4, 8, 16), turn_rows=8)) == [1, 3]
    assert sizes_of(waiting.fill((4, 8, 16), turn_rows=8)) == [8]


def test_where_the_largest_batch_is_no_longer_than_a_turn_it_is_filled() -> None:
    assert sizes_of(lane(1, begun=(200,)).fill((4, 8, 16), turn_rows=16)) == [1, 15]


def test_many_rows_beside_a_large_request_have_half_of_each_turn() -> None:
    waiting = lane(*[1] * 20, begun=(200,))
    assert sum(sizes_of(waiting.fill((4, 8, 16), turn_rows=8))[:4]) == 4
    assert len(waiting.fresh) == 16


def test_requests_that_are_no_larger_than_a_turn_fill_the_largest_batch() -> None:
    waiting = lane(*[4] * 10)
    assert [sum(sizes_of(waiting.fill((4, 8, 16), turn_rows=8))) for _ in range(3)] == [16, 16, 8]


# --- limits -------------------------------------------------------------------------------------------------------------------


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            tasks = await start(batcher.submit(engine, "generator", latents(60)), batcher.submit(engine, "generator", latents(40)))
            with pytest.raises(Overloaded) as caught:
                await batcher.submit(engine, "generator", latents(1))
            assert "100 images wait and 1 more would pass the limit of 100" in caught.value.detail
            assert int(caught.value.headers["Retry-After"]) >= 1
            assert batcher.queued_images == 100
        assert [len(answer) for answer in await asyncio.gather(*tasks)] == [60, 40]
        assert len(await batcher.submit(engine, "generator", latents(1))) == 1

    run(main, capacity_images=100)


def test_the_time_to_come_back_grows_with_what_waits(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        await batcher.submit(engine, "generator", latents(64))
        waits = []
        for count in (1, 50_000_000):
            async with busy(batcher):
                task = asyncio.create_task(batcher.submit(engine, "generator", {"latent": torch.zeros(1, 8).expand(count, 8)}))
                await asyncio.sleep(0)
                with pytest.raises(Overloaded) as caught:
                    await batcher.submit(engine, "generator", latents(1))
                waits.append(int(caught.value.headers["Retry-After"]))
                task.cancel()
        assert waits[0] == 1
        assert waits[1] > 1

    run(main, capacity_images=1)


def test_a_request_larger_than_the_queue_is_served_when_nothing_waits(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        assert len(await batcher.submit(engine, "generator", latents(100))) == 100

    run(main, capacity_images=10)


def test_room_can_be_held_for_what_is_still_made_ready(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            with batcher.holding(engine, 60):
                assert batcher.queued_images == 60
                with pytest.raises(Overloaded, match="60 images wait and 41 more"), batcher.holding(engine, 41):
                    raise AssertionError("refused before the work")
                with visiting(Visit()), pytest.raises(Overloaded, match="60 images wait and 41 more"):
                    await batcher.submit(engine, "generator", latents(41))
                (task,) = await start(batcher.submit(engine, "generator", latents(60)))
                assert batcher.queued_images == 60
        await task
        assert batcher.queued_images == 0

    run(main, capacity_images=100)


def test_who_was_let_in_once_is_never_refused_half_way(engine: LoggingEngine) -> None:
    def steps() -> Generator[None, None, str]:
        yield
        return "done"

    async def main(batcher: Batcher) -> None:
        with batcher.holding(engine, 80):
            await batcher.submit(engine, "generator", latents(60))
            assert batcher.queued_images == 20
            async with busy(batcher):
                with visiting(Visit()):
                    others = await start(batcher.submit(engine, "generator", latents(70, 1)))
                mine = await start(batcher.submit(engine, "generator", latents(60, 2)))
                assert batcher.queued_images == 130
            await asyncio.gather(*mine, *others)
            async with busy(batcher):
                with visiting(Visit()):
                    others = await start(batcher.submit(engine, "generator", latents(70, 1)))
                tiles = asyncio.create_task(batcher.run_steps(steps(), 90))
                await asyncio.sleep(0)
                assert batcher.queued_images == 160
            await asyncio.gather(tiles, *others)
        assert batcher.queued_images == 0
        with pytest.raises(Overloaded), batcher.holding(engine, 40), visiting(Visit()), batcher.holding(engine, 61):
            raise AssertionError("room is asked for anew")
        assert batcher.queued_images == 0

    run(main, capacity_images=100)


def test_the_engine_rests_while_the_encoders_have_much_to_do(engine: LoggingEngine) -> None:
    async def main() -> None:
        gate = threading.Event()
        with Pool("encode", 1) as encoders:
            batcher = Batcher(num_threads=1, encoders=encoders)
            encoding = asyncio.create_task(encoders.run(lambda: gate.wait(60), MAX_IMAGES_AHEAD + 1))
            await asyncio.sleep(0)
            (task,) = await start(batcher.submit(engine, "generator", latents(4)))
            assert batcher.queued_images == 4
            gate.set()
            await encoding
            assert len(await task) == 4
            await batcher.aclose()

    asyncio.run(main())


# --- what is told of it -------------------------------------------------------------------------------------------------------


def test_a_visit_is_told_of_its_version_and_its_times(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        visit = Visit()
        with visiting(visit):
            async with busy(batcher):
                (task,) = await start(batcher.submit(engine, "generator", latents(200)))
            await task
        assert (visit.model, visit.version) == ("tiny", "1")
        assert visit.seconds["queue"] > 0
        assert visit.seconds["run"] > 0
        assert sum(visit.seconds.values()) < time.perf_counter() - visit.began

    run(main)


def test_batches_are_counted_with_their_padding(engine: LoggingEngine) -> None:
    async def main() -> None:
        metrics = Metrics()
        batcher = Batcher(num_threads=1, metrics=metrics)
        for count in (1, 4, 9):
            await batcher.submit(engine, "generator", latents(count))
        async with busy(batcher):
            (task,) = await start(batcher.submit(engine, "generator", latents(7)))
            assert b"ganserve_queue_images 7.0" in metrics.text()
        await task
        await batcher.aclose()
        told = metrics.text()
        buckets = engine.buckets["generator"]
        padding = sum(min(size for size in buckets if size >= count) - count for count in (1, 4, 9, 7))
        assert b'ganserve_batch_rows_sum{model="tiny",version="1"} 21.0' in told
        assert f'ganserve_padding_rows_total{{model="tiny",version="1"}} {padding}.0'.encode() in told
        assert b"ganserve_queue_images 0.0" in told

    asyncio.run(main())


# --- leaving ------------------------------------------------------------------------------------------------------------------


def test_rows_of_a_client_that_has_left_never_run(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            stays, leaves = await start(
                batcher.submit(engine, "generator", latents(64)), batcher.submit(engine, "generator", latents(200, 1))
            )
            leaves.cancel()
            await asyncio.wait([leaves])
            assert batcher.queued_images == 64
        assert torch.equal(await stays, expected(engine, latents(64)))
        assert leaves.cancelled()
        assert engine.log.sizes == [64]

    run(main)


def test_a_client_that_leaves_half_way_costs_no_more_than_the_batch_that_runs(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with AsyncExitStack() as after_one_batch:
            async with busy(batcher):
                (leaves,) = await start(batcher.submit(engine, "generator", latents(4000)))
                await after_one_batch.enter_async_context(busy(batcher))
            while not engine.log.batches:
                await asyncio.sleep(0)
            leaves.cancel()
            await asyncio.wait([leaves])
            assert batcher.queued_images == 0
        await batcher.submit(engine, "generator", latents(1))
        assert engine.log.sizes == [64, 1]

    run(main)


def test_leaving_makes_room_for_others(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            (leaves,) = await start(batcher.submit(engine, "generator", latents(10)))
            leaves.cancel()
            await asyncio.wait([leaves])
            (comes,) = await start(batcher.submit(engine, "generator", latents(10, 1)))
        assert torch.equal(await comes, expected(engine, latents(10, 1)))

    run(main, capacity_images=10)


def test_a_storm_of_leaving_clients_leaves_nothing_behind(engine: LoggingEngine) -> None:
    dice = Random(2)  # noqa: S311

    async def main(batcher: Batcher) -> None:
        tasks = []
        for seed in range(200):
            count = dice.choice([1, 3, 17, 64, 100])
            tasks.append((seed, count, asyncio.create_task(batcher.submit(engine, "generator", latents(count, seed)))))
            if seed % 3 == 0:
                await asyncio.sleep(0)
            dice.choice(tasks)[2].cancel()
        await asyncio.wait([task for _, _, task in tasks])
        stayed = [(seed, count, task) for seed, count, task in tasks if not task.cancelled()]
        assert stayed
        assert all(torch.equal(task.result(), expected(engine, latents(count, seed))) for seed, count, task in stayed)
        assert batcher.queued_images == 0

    run(main, capacity_images=100_000)


# --- failing ------------------------------------------------------------------------------------------------------------------


def test_an_error_reaches_the_requests_of_its_batch_and_no_others(engine: LoggingEngine) -> None:
    wrong = {"latent": torch.zeros(4, 7)}

    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            tasks = await start(
                batcher.submit(engine, "generator", latents(64)),
                *(batcher.submit(engine, "discriminator", wrong) for _ in range(2)),
                batcher.submit(engine, "generator", latents(64, 1)),
            )
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(answers[1], KeyError | RuntimeError)
        assert isinstance(answers[2], KeyError | RuntimeError)
        assert torch.equal(answers[0], expected(engine, latents(64)))
        assert torch.equal(answers[3], expected(engine, latents(64, 1)))
        assert batcher.queued_images == 0
        assert len(await batcher.submit(engine, "generator", latents(1))) == 1

    run(main)


def test_after_an_error_the_rest_of_the_request_does_not_run(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        with pytest.raises(RuntimeError):
            await batcher.submit(engine, "generator", {"latent": torch.zeros(256, 7)})
        await batcher.submit(engine, "generator", latents(2))
        assert engine.log.sizes == [64, 2]

    run(main)


# --- other work, and the end ----------------------------------------------------------------------------------------------------


def test_other_work_runs_on_the_same_thread_and_gives_its_answer(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        name = await batcher.run_on_thread(lambda: threading.current_thread().name)
        await batcher.submit(engine, "generator", latents(1))
        assert engine.log.threads == {name}
        assert name != threading.current_thread().name

    run(main)


def test_what_other_work_raises_is_raised_to_its_caller_alone(engine: LoggingEngine) -> None:
    def fail() -> None:
        raise LookupError("on purpose")

    async def main(batcher: Batcher) -> None:
        with pytest.raises(LookupError, match="on purpose"):
            await batcher.run_on_thread(fail)
        assert len(await batcher.submit(engine, "generator", latents(1))) == 1

    run(main)


def test_other_work_takes_turns_with_batches(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        ran: list[int] = []
        async with busy(batcher):
            tasks = await start(batcher.submit(engine, "generator", latents(192)))
            calls = [asyncio.create_task(batcher.run_on_thread(lambda: ran.append(len(engine.log.batches)))) for _ in range(3)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, *calls)
        assert ran == [1, 2, 3]

    run(main)


def test_long_work_in_steps_lets_batches_run_between_them(engine: LoggingEngine) -> None:
    def long() -> Generator[None, None, list[int]]:
        seen = []
        for _ in range(4):
            seen.append(len(engine.log.batches))
            assert threading.current_thread() is not threading.main_thread()
            yield
        return seen

    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            work = asyncio.create_task(batcher.run_steps(long()))
            tasks = await start(batcher.submit(engine, "generator", latents(256)))
        await asyncio.gather(*tasks)
        seen = await work
        assert seen[0] <= 1
        assert seen[3] >= 3

    run(main)


def test_what_a_step_raises_is_raised_to_its_caller(engine: LoggingEngine) -> None:
    def long() -> Generator[None, None, None]:
        yield
        raise LookupError("on purpose")

    async def main(batcher: Batcher) -> None:
        with pytest.raises(LookupError, match="on purpose"):
            await batcher.run_steps(long())
        assert len(await batcher.submit(engine, "generator", latents(1))) == 1

    run(main)


def test_the_thread_uses_the_number_of_torch_threads_it_was_told() -> None:
    before = torch.get_num_threads()

    async def main(batcher: Batcher) -> None:
        assert await batcher.run_on_thread(torch.get_num_threads) == 2

    run(main, num_threads=2)
    torch.set_num_threads(before)


def test_the_end_finishes_what_has_begun_and_refuses_what_waits(engine: LoggingEngine) -> None:
    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            begun, waits = await start(
                batcher.submit(engine, "generator", latents(128)), batcher.submit(engine, "discriminator", images(8))
            )
        while not engine.log.batches:
            await asyncio.sleep(0)
        await batcher.aclose()
        assert torch.equal(await begun, expected(engine, latents(128)))
        answer = (await asyncio.gather(waits, return_exceptions=True))[0]
        if isinstance(answer, Overloaded):  # else its turn came before the end
            assert answer.headers["Retry-After"] == "1"
        for refused in (batcher.submit(engine, "generator", latents(1)), batcher.run_on_thread(lambda: None)):
            with pytest.raises(Overloaded, match="the server stops"):
                await refused

    run(main)


def test_the_end_refuses_what_has_not_begun(engine: LoggingEngine) -> None:
    before = set(threading.enumerate())  # other tests may share a server

    async def main(batcher: Batcher) -> None:
        async with busy(batcher):
            tasks = await start(batcher.submit(engine, "generator", latents(5)), batcher.submit(engine, "generator", latents(300)))
            ending = asyncio.create_task(batcher.aclose())
            await asyncio.sleep(0)
        await ending
        for task in tasks:
            with pytest.raises(Overloaded, match="the server stops"):
                await task
        assert engine.log.batches == []
        assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("engine")]

    run(main)
