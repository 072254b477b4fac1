"""What is loaded, in what order, and what is let go."""

import asyncio
import gc
import logging
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from api_client import refusal, serving
from tiny_versions import trusted_by

from app.batcher import Batcher
from app.engines import Engines, num_bytes
from app.errors import Overloaded
from app.repository import Entry, Inventory, scan
from app.settings import Settings
from app.store import Store
from training.contract import Manifest
from training.files import versions

MakeVersion = Callable[..., Manifest]
CPU = torch.device("cpu")


@pytest.fixture
def four(make_version: MakeVersion, repository: Path) -> Path:
    """Models a, b, c and d of one size."""
    for name in "abcd":
        make_version(repository, name)
    return repository


def size_of(repository: Path) -> int:
    return num_bytes(inventory(repository).entries["a"][1].manifest or pytest.fail("no manifest"))


def inventory(repository: Path) -> Inventory:
    return scan([repository], Inventory(), trusted_by(repository))


@asynccontextmanager
async def opened(repository: Path, *, memory_bytes: int | None = None, pins: Sequence[str] = ()) -> AsyncIterator[Store]:
    batcher = Batcher(num_threads=1)
    store = Store([repository], CPU, batcher, digests=trusted_by(repository), memory_bytes=memory_bytes, pins=pins)
    try:
        yield store
    finally:
        await batcher.aclose()
        await store.aclose()


def run(main: Callable[[Store], Awaitable[None]], repository: Path, *, memory_bytes: int | None = None, pins: Sequence[str] = ()) -> None:
    async def whole() -> None:
        async with opened(repository, memory_bytes=memory_bytes, pins=pins) as store:
            await main(store)

    asyncio.run(whole())


def loaded(store: Store) -> str:
    return "".join(served.manifest.name for served in store.listing().models if served.is_loaded)


# --- order ----------------------------------------------------------------------------------------------------------------------


def test_what_a_request_waits_for_is_loaded_before_what_was_begun_for_nobody(four: Path) -> None:
    async def main() -> None:
        batcher = Batcher(num_threads=1)
        engines, entries = Engines(batcher, CPU), inventory(four).entries
        done: list[str] = []

        async def load(entry: Entry, *, urgent: bool) -> None:
            assert await engines.load(entry, urgent=urgent) is not None
            done.append(entry.name)

        tasks = [asyncio.create_task(load(entries[name][1], urgent=False)) for name in "ab"]
        await asyncio.sleep(0)
        tasks += [asyncio.create_task(load(entries[name][1], urgent=True)) for name in "dc"]
        await asyncio.gather(*tasks)
        assert done == ["d", "c", "a", "b"]
        await batcher.aclose()

    asyncio.run(main())


def test_a_store_that_has_only_looked_answers_and_loads_pins_first_then_by_name(four: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(store: Store) -> None:
        pending = await store.look()
        assert [entry.name for entry in pending] == ["c", "a", "b", "d"]
        assert (store.loading, store.is_ready, store.has_first.is_set()) == (("a", "b", "c", "d"), False, False)
        assert (await store.engine("d")).manifest.name == "d"
        assert store.loading == ("a", "b", "c")
        await store.refresh()
        assert (store.loading, store.is_ready, store.has_first.is_set()) == ((), True, True)

    with caplog.at_level(logging.INFO):
        run(main, four, pins=("c",))
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["d", "c", "a", "b"]


def test_a_request_that_comes_before_its_model_is_loaded_waits_and_probes_are_answered(
    make_version: MakeVersion, repository: Path, tmp_path: Path
) -> None:
    for name in "abc":
        make_version(repository, name, network="conv", size=32)
    gate = threading.Event()
    with serving(Settings(models=(repository,), state=tmp_path / "state", run_jobs=False), wait=False) as api:
        api.begin(api.service.batcher.run_on_thread, gate.wait)
        early = api.get("/readyz")
        body = early.json()
        assert (early.status_code, body["status"]) == (503, "loading")
        assert body["loading"]
        assert sorted(body["models"] + body["loading"]) == ["a", "b", "c"]
        assert api.get("/healthz").status_code == 200
        cards = api.get("/models").json()["models"]
        assert [card["name"] for card in cards] == ["a", "b", "c"]
        assert (cards[2]["loaded"], cards[2]["batch_sizes"]) == (False, {})
        refusal(api.post("/generate", {"model": "d"}), 404)
        gate.set()
        assert api.post("/generate", {"model": "c", "num_images": 1}).status_code == 200
        api.refresh()
        assert api.get("/readyz").json() == {"status": "ready", "device": "cpu", "models": ["a", "b", "c"], "loading": []}
        assert all(card["loaded"] and card["batch_sizes"] for card in api.get("/models").json()["models"])


# --- memory ---------------------------------------------------------------------------------------------------------------------


def test_over_the_budget_what_was_used_least_recently_goes_and_comes_back_when_it_is_asked_for(four: Path) -> None:
    async def main(store: Store) -> None:
        await store.refresh()
        assert (loaded(store), store.names, store.is_ready, store.loading) == ("ab", ("a", "b", "c", "d"), True, ())
        held = await store.engine("a")
        await store.engine("c")
        assert loaded(store) == "ac"
        await store.engine("d")
        assert loaded(store) == "cd"
        assert len(held.run("generator", {"latent": torch.zeros(1, 8)})) == 1  # who has it may finish
        gone = weakref.ref(held)
        del held
        gc.collect()
        assert gone() is None
        await store.refresh()
        assert loaded(store) == "cd"
        await store.engine("a")
        assert loaded(store) == "ad"

    run(main, four, memory_bytes=2 * size_of(four))


def test_a_pinned_model_never_goes_and_one_larger_than_the_budget_is_served(four: Path) -> None:
    async def main(store: Store) -> None:
        await store.refresh()
        assert loaded(store) == "d"
        for name in "abc":
            assert (await store.engine(name)).manifest.name == name
            assert loaded(store) == f"{name}d"

    run(main, four, memory_bytes=size_of(four) // 2, pins=("d",))


def test_a_new_version_takes_the_place_of_a_loaded_one_and_no_room_from_others(four: Path, make_version: MakeVersion) -> None:
    async def main(store: Store) -> None:
        await store.refresh()
        await store.engine("b")
        make_version(four, "b", version=2)
        make_version(four, "c", version=2)
        versions.write_alias([four], "a", "best", 1)
        await store.refresh()
        assert (store.default_version("b"), store.default_version("c")) == (2, 2)
        assert "b" in loaded(store)
        assert "c" not in loaded(store)
        assert (await store.engine("c")).manifest.version == 2

    run(main, four, memory_bytes=2 * size_of(four))


def test_what_lost_its_name_and_is_not_asked_for_gives_way_to_new_models(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "a")

    async def main(store: Store) -> None:
        await store.refresh()
        for name, version in (("a", 2), ("a", 3), ("b", 1)):
            make_version(repository, name, version=version)
            await store.refresh()
        assert (loaded(store), store.loading) == ("ab", ())
        asked = await store.engine("a", 2)
        make_version(repository, "c")
        await store.refresh()
        assert loaded(store) == "ab"
        assert await store.engine("a", 2) is asked

    run(main, repository, memory_bytes=3 * size_of(repository))


def test_a_version_that_is_removed_while_it_loads_is_not_kept(four: Path) -> None:
    async def main() -> None:
        batcher = Batcher(num_threads=1)
        engines, entry = Engines(batcher, CPU), inventory(four).entries["a"][1]
        task = asyncio.create_task(engines.load(entry, urgent=True))
        await asyncio.sleep(0)
        engines.keep(lambda _entry: False, (), ())
        assert await task is not None
        assert engines.look_at(entry) is None
        await batcher.aclose()

    asyncio.run(main())


def test_a_server_that_stops_leaves_no_loading_behind(four: Path) -> None:
    async def main() -> None:
        batcher = Batcher(num_threads=1)
        engines, entries = Engines(batcher, CPU), inventory(four).entries
        tasks = {asyncio.create_task(engines.load(entries[name][1], urgent=False)) for name in "ab"}
        await asyncio.sleep(0)
        await batcher.aclose()
        await engines.aclose()
        assert not asyncio.all_tasks() - tasks - {asyncio.current_task()}
        assert all(isinstance(error, Overloaded) for error in await asyncio.gather(*tasks, return_exceptions=True))

    asyncio.run(main())


def test_a_broken_version_that_had_no_room_is_found_out_when_it_is_asked_for_and_the_one_before_answers(
    four: Path, make_version: MakeVersion
) -> None:
    make_version(four, "d", version=2)
    (four / "d/2/generator.pt").unlink()

    async def main(store: Store) -> None:
        await store.refresh()
        assert store.default_version("d") == 2
        assert (await store.engine("d")).manifest.version == 1
        assert [(item.name, item.version) for item in store.listing().broken] == [("d", 2)]

    run(main, four, memory_bytes=size_of(four))
