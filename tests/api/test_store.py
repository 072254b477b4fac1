"""Which version answers, and what happens when versions come, go and break."""

import asyncio
import gc
import logging
import os
import random
import shutil
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import torch
from tiny_versions import trusted_by

from app.batcher import Batcher
from app.engines import MAX_UNNAMED
from app.errors import NotFound, UnknownModel, UnknownVersion
from app.store import Store
from training.contract import Manifest
from training.files import versions
from training.files.directories import sha256_of

MakeVersion = Callable[..., Manifest]
Main = Callable[[Store], Awaitable[None]]


@asynccontextmanager
async def opened(repositories: Sequence[Path]) -> AsyncIterator[tuple[Store, Batcher]]:
    batcher = Batcher(num_threads=1)
    store = Store(repositories, torch.device("cpu"), batcher, digests=trusted_by(repositories[0]))
    try:
        await store.refresh()
        yield store, batcher
    finally:
        await batcher.aclose()
        await store.aclose()


def run(main: Main, *repositories: Path) -> None:
    async def whole() -> None:
        async with opened(repositories) as (store, _):
            await main(store)

    asyncio.run(whole())


async def version_of(store: Store, name: str = "digits", version: int | str | None = None) -> int:
    return (await store.engine(name, version)).manifest.version


async def refusal(kind: type[NotFound], store: Store, name: str, version: int | str | None = None) -> str:
    with pytest.raises(kind) as caught:
        await store.engine(name, version)
    return caught.value.detail


def broken(store: Store) -> list[tuple[str, int | None]]:
    return [(item.name, item.version) for item in store.listing().broken]


@pytest.fixture
def three(make_version: MakeVersion, repository: Path) -> Path:
    """Versions 1 to 3 of digits, and fashion."""
    for number in (1, 2, 3):
        make_version(repository, "digits", version=number, seed=number)
    make_version(repository, "fashion", network="conv", channels=3)
    return repository


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# --- which version answers ------------------------------------------------------------------------------------------------------


def test_the_newest_answers_where_none_is_named_and_each_answers_by_number(three: Path) -> None:
    async def main(store: Store) -> None:
        assert await version_of(store) == 3
        assert [await version_of(store, version=number) for number in (1, 2, 3, "2")] == [1, 2, 3, 2]
        assert store.names == ("digits", "fashion")
        assert store.default_version("digits") == 3
        assert store.manifest("digits", 1).version == 1
        assert [manifest.version for manifest in store.manifests("digits")] == [1, 2, 3]

    run(main, three)


def test_production_answers_where_none_is_named_and_aliases_by_their_name(three: Path) -> None:
    versions.write_alias([three], "digits", "production", 2)
    versions.write_alias([three], "digits", "previous", 1)

    async def main(store: Store) -> None:
        assert await version_of(store) == 2
        assert await version_of(store, version="production") == 2
        assert await version_of(store, version="previous") == 1
        assert await version_of(store, version=3) == 3

    run(main, three)


def test_unknown_model_lists_the_known_ones_and_the_nearest(three: Path) -> None:
    async def main(store: Store) -> None:
        assert (
            await refusal(UnknownModel, store, "digit") == "there is no model 'digit'; there are: digits, fashion; did you mean 'digits'?"
        )
        assert "there is no model '\\ud800'" in await refusal(UnknownModel, store, "\ud800")
        for call in (store.manifests, store.manifest, store.default_version):
            with pytest.raises(UnknownModel):
                call("nothing")

    run(main, three)


def test_an_empty_repository_serves_nothing_and_says_so(repository: Path) -> None:
    async def main(store: Store) -> None:
        assert await refusal(UnknownModel, store, "digits") == "there is no model 'digits'; there are: none yet"
        assert store.names == ()
        assert store.listing().models == ()

    run(main, repository)


def test_unknown_version_lists_versions_and_aliases(three: Path) -> None:
    versions.write_alias([three], "digits", "production", 2)

    async def main(store: Store) -> None:
        known = "versions: 1, 2, 3; aliases: previous (3), production (2)"
        assert await refusal(UnknownVersion, store, "digits", 4) == f"model 'digits' has no version 4; {known}"
        assert await refusal(UnknownVersion, store, "digits", "best") == f"model 'digits' has no version 'best'; {known}"
        for odd in ("", "..", "-1", "1.0", "٣", "9" * 60, 0, -1):
            assert "has no version" in await refusal(UnknownVersion, store, "digits", odd)
        assert "aliases: none" in await refusal(UnknownVersion, store, "fashion", "production")

    run(main, three)


# --- broken versions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["generator.pt", "discriminator.pt", "samples.png"])
def test_a_broken_newest_is_left_out_named_and_the_one_before_answers(file: str, three: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip_a_byte(three / "digits/3" / file)

    async def main(store: Store) -> None:
        assert await version_of(store) == 2
        assert broken(store) == [("digits", 3)]
        assert store.listing().broken[0].reason == f"{file} does not have the sha256 that its document says"
        assert store.listing().models[0].versions == (1, 2)
        detail = await refusal(UnknownVersion, store, "digits", 3)
        assert detail.startswith(f"version 3 of model 'digits' is broken: {file} does not have")
        assert detail.endswith("versions: 1, 2; aliases: none")

    run(main, three)
    assert f"digits version 3 is broken and left out: {file}" in caplog.text


def test_a_model_whose_versions_are_all_broken_says_why_and_the_rest_serves(three: Path) -> None:
    for number in (1, 2, 3):
        (three / f"digits/{number}/generator.pt").unlink()

    async def main(store: Store) -> None:
        detail = await refusal(UnknownVersion, store, "digits")
        assert detail.startswith("model 'digits' has no version that can be served; version 1 is broken: generator.pt is missing")
        assert await version_of(store, "fashion") == 1
        assert store.names == ("fashion",)
        assert broken(store) == [("digits", 1), ("digits", 2), ("digits", 3)]

    run(main, three)


def test_a_manifest_that_cannot_be_read_breaks_its_version_alone(three: Path) -> None:
    (three / "digits/3/manifest.json").write_text("{")
    (three / "digits/2/manifest.json").unlink()

    async def main(store: Store) -> None:
        assert await version_of(store) == 1
        assert broken(store) == [("digits", 2), ("digits", 3)]

    run(main, three)


def test_a_broken_version_is_told_once_and_tried_again_when_its_files_change(
    three: Path, make_version: MakeVersion, caplog: pytest.LogCaptureFixture
) -> None:
    path = three / "digits/3/generator.pt"
    whole = path.read_bytes()
    flip_a_byte(path)

    async def main(store: Store) -> None:
        seen = path.stat()
        path.write_bytes(whole)
        os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))  # good again, and looking as it did: who tries again will tell
        for number in range(1, 4):
            make_version(three, "other", version=number)
            await store.refresh()
            assert await version_of(store) == 2
            await refusal(UnknownVersion, store, "digits", 3)
        assert caplog.text.count("digits version 3 is broken") == 1
        os.utime(path)
        await store.refresh()
        assert await version_of(store) == 3
        assert broken(store) == []

    run(main, three)


def test_production_that_is_broken_is_answered_by_the_one_before_and_never_by_a_newer(three: Path) -> None:
    versions.write_alias([three], "digits", "production", 2)
    flip_a_byte(three / "digits/2/generator.pt")

    async def main(store: Store) -> None:
        assert await version_of(store) == 1
        assert "version 2 of model 'digits' is broken" in await refusal(UnknownVersion, store, "digits", "production")

    run(main, three)


def test_a_version_that_turns_out_broken_when_it_is_asked_for_is_named_from_then_on(three: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip_a_byte(three / "digits/1/generator.pt")

    async def main(store: Store) -> None:
        assert broken(store) == []  # nobody has asked for it
        assert "is broken: generator.pt" in await refusal(UnknownVersion, store, "digits", 1)
        assert broken(store) == [("digits", 1)]
        assert "is broken: generator.pt" in await refusal(UnknownVersion, store, "digits", 1)

    run(main, three)
    assert caplog.text.count("digits version 1 is broken") == 1


def test_a_version_that_is_spoiled_while_it_serves_is_left_out_and_the_one_before_answers(three: Path) -> None:
    async def main(store: Store) -> None:
        engine = await store.engine("digits")
        flip_a_byte(three / "digits/3/generator.pt")
        await store.refresh()
        assert await version_of(store) == 2
        assert len(engine.run("generator", {"latent": torch.zeros(1, 8)})) == 1  # who has it may finish

    run(main, three)


def test_a_version_that_is_copied_in_file_by_file_answers_only_when_it_is_whole(
    three: Path, make_version: MakeVersion, tmp_path: Path
) -> None:
    make_version(tmp_path / "elsewhere", "digits", version=4)
    source, target = tmp_path / "elsewhere/digits/4", three / "digits/4"

    async def main(store: Store) -> None:
        target.mkdir()
        files = ["manifest.json", "generator.pt", "samples.png", "discriminator.pt"]
        assert sorted(files) == sorted(path.name for path in source.iterdir())
        for file in files:
            content = (source / file).read_bytes()
            for part in (content[: len(content) // 2], content):
                await store.refresh()
                assert await version_of(store) == 3
                (target / file).write_bytes(part)
        await store.refresh()
        assert await version_of(store) == 4
        assert broken(store) == []

    run(main, three)


def test_sixty_corruptions_of_a_published_version_are_all_left_out(three: Path) -> None:
    dice = random.Random(11)  # noqa: S311
    folder = three / "digits/3"
    files = ["generator.pt", "discriminator.pt", "samples.png"]
    whole = {file: (folder / file).read_bytes() for file in files}

    async def main(store: Store) -> None:
        for turn in range(60):
            file = files[turn % 3]
            place = dice.randrange(len(whole[file]))
            flipped = bytes([whole[file][place] ^ (1 << dice.randrange(8))])
            tail = b"" if turn % 2 else flipped + whole[file][place + 1 :]
            (folder / file).write_bytes(whole[file][:place] + tail)
            await store.refresh()
            assert await version_of(store) == 2
            assert broken(store) == [("digits", 3)]
            (folder / file).write_bytes(whole[file])
        await store.refresh()
        assert await version_of(store) == 3

    run(main, three)


# --- versions come and go -------------------------------------------------------------------------------------------------------


def test_a_published_version_answers_after_the_next_refresh_and_the_old_engine_can_finish(three: Path, make_version: MakeVersion) -> None:
    async def main(store: Store) -> None:
        old = await store.engine("digits")
        make_version(three, "digits", version=4, seed=4)
        make_version(three, "new")
        assert await version_of(store) == 3
        await store.refresh()
        assert await version_of(store) == 4
        assert await version_of(store, "new") == 1
        assert len(old.run("generator", {"latent": torch.zeros(2, 8)})) == 2
        assert await store.engine("digits", 3) is old  # still warm: the way back costs nothing

    run(main, three)


def test_aliases_of_one_model_move_while_another_loads(three: Path, make_version: MakeVersion) -> None:
    versions.write_alias([three], "digits", "production", 1)

    async def whole() -> None:
        async with opened([three]) as (store, batcher):
            make_version(three, "digits", version=4)  # will answer, and is yet to be loaded
            gate = threading.Event()
            held = asyncio.create_task(batcher.run_on_thread(gate.wait))
            unpointing = asyncio.create_task(store.unpoint("digits", "production"))
            try:
                while "production" in versions.read_aliases([three], "digits"):
                    await asyncio.sleep(0.01)
                await asyncio.wait_for(store.point("fashion", "best", 1), 30)
                assert not unpointing.done()
            finally:
                gate.set()
            await asyncio.gather(held, unpointing)
            assert store.default_version("digits") == 4

    asyncio.run(whole())


def test_moving_the_alias_is_a_swap_and_back(three: Path) -> None:
    async def main(store: Store) -> None:
        newest = await store.engine("digits")
        versions.write_alias([three], "digits", "production", 1)
        await store.refresh()
        assert await version_of(store) == 1
        versions.write_alias([three], "digits", "production", 3)
        await store.refresh()
        assert await store.engine("digits") is newest

    run(main, three)


def test_a_removed_version_disappears_and_so_does_a_removed_model(three: Path) -> None:
    versions.write_alias([three], "digits", "first", 1)

    async def main(store: Store) -> None:
        assert await version_of(store, version=1) == 1
        shutil.rmtree(three / "digits/1")
        shutil.rmtree(three / "digits/3")
        shutil.rmtree(three / "fashion")
        await store.refresh()
        assert await version_of(store) == 2
        assert "versions: 2" in await refusal(UnknownVersion, store, "digits", 1)
        assert "has no version 'first'" in await refusal(UnknownVersion, store, "digits", "first")
        assert "there are: digits" in await refusal(UnknownModel, store, "fashion")

    run(main, three)


def test_a_removed_version_is_let_go(three: Path) -> None:
    async def main(store: Store) -> None:
        engines = [weakref.ref(await store.engine("digits", number)) for number in (1, 3)]
        for number in (1, 3):
            shutil.rmtree(three / f"digits/{number}")
        await store.refresh()
        gc.collect()
        assert [engine() for engine in engines] == [None, None]

    run(main, three)


def test_refreshing_without_a_change_keeps_every_engine(three: Path) -> None:
    async def main(store: Store) -> None:
        engines = [await store.engine("digits"), await store.engine("digits", 1), await store.engine("fashion")]
        for _ in range(3):
            await store.refresh()
        assert [await store.engine("digits"), await store.engine("digits", 1), await store.engine("fashion")] == engines

    run(main, three)


def test_a_read_only_repository_serves_beside_the_first(three: Path, make_version: MakeVersion, tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    make_version(demo, "digits", version=7)
    make_version(demo, "digits", version=3, seed=9)
    make_version(demo, "demo")

    async def main(store: Store) -> None:
        assert await version_of(store) == 7
        assert await version_of(store, "demo") == 1
        assert store.names == ("demo", "digits", "fashion")
        assert broken(store) == [("digits", 3)]
        assert store.listing().broken[0].reason.startswith("two repositories hold this version")
        served = (await store.engine("digits", 3)).manifest.generator.files["torchscript"].sha256
        assert served == sha256_of(three / "digits/3/generator.pt")

    run(main, three, demo)


def test_while_a_version_loads_the_others_answer(three: Path, make_version: MakeVersion) -> None:
    async def whole() -> None:
        async with opened([three]) as (store, batcher):
            engine = await store.engine("digits")
            make_version(three, "heavy", network="conv", size=32)
            loading = asyncio.create_task(store.refresh())
            answers = 0
            while not loading.done():
                await batcher.submit(engine, "generator", {"latent": torch.zeros(1, 8)})
                answers += 1
            await loading
            assert await version_of(store, "heavy") == 1
            assert answers > 20  # one between any two forward passes

    asyncio.run(whole())


def test_a_storm_of_publishing_fails_no_request_and_mixes_no_versions(three: Path, make_version: MakeVersion) -> None:
    latent = {"latent": torch.ones(3, 8)}

    async def whole() -> None:
        async with opened([three]) as (store, batcher):
            answers: dict[int, set[bytes]] = {}
            ends = asyncio.Event()

            async def ask() -> int:
                last, count = 0, 0
                while not ends.is_set():
                    engine = await store.engine("digits")
                    images = await batcher.submit(engine, "generator", latent)
                    assert engine.manifest.version >= last
                    last = engine.manifest.version
                    answers.setdefault(last, set()).add(images.numpy().tobytes())
                    count += 1
                return count

            clients = [asyncio.create_task(ask()) for _ in range(4)]
            for number in range(4, 14):
                await asyncio.to_thread(make_version, three, "digits", version=number, seed=number)
                await store.refresh()
            ends.set()
            assert min(await asyncio.gather(*clients)) > 0
            assert await version_of(store) == 13
            assert all(len(pictures) == 1 for pictures in answers.values())

    asyncio.run(whole())


# --- versions that are loaded when they are asked for -----------------------------------------------------------------------------


def test_concurrent_first_requests_for_a_version_load_it_once(three: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main(store: Store) -> None:
        engines = await asyncio.gather(*(store.engine("digits", 1) for _ in range(8)))
        assert len(set(engines)) == 1

    with caplog.at_level(logging.INFO):
        run(main, three)
    assert caplog.text.count("digits version 1 is loaded") == 1


def test_a_client_that_leaves_while_its_version_loads_takes_nothing_from_the_others(three: Path) -> None:
    async def main(store: Store) -> None:
        leaves, stays = (asyncio.create_task(store.engine("digits", 1)) for _ in range(2))
        await asyncio.sleep(0)
        leaves.cancel()
        assert (await stays).manifest.version == 1
        assert leaves.cancelled()

    run(main, three)


def test_of_versions_asked_for_by_number_the_least_recently_used_goes_first(make_version: MakeVersion, repository: Path) -> None:
    newest = MAX_UNNAMED + 2
    for number in range(1, newest + 1):
        make_version(repository, "digits", version=number)

    async def main(store: Store) -> None:
        first = [await store.engine("digits", number) for number in range(1, newest)]  # one more than is kept
        again = [await store.engine("digits", number) for number in range(newest - 1, 1, -1)]
        assert again == first[:0:-1]  # all but the first are still there
        assert await store.engine("digits", 1) is not first[0]
        assert await store.engine("digits", 2) is first[1]  # used last but one
        assert await store.engine("digits", newest - 1) is not first[-1]  # used least recently

    run(main, repository)


# --- telling --------------------------------------------------------------------------------------------------------------------


def test_the_listing_tells_of_each_model_what_answers_and_what_there_is(three: Path) -> None:
    versions.write_alias([three], "digits", "production", 2)

    async def main(store: Store) -> None:
        digits, fashion = store.listing().models
        assert (digits.manifest.name, digits.manifest.version) == ("digits", 2)
        assert digits.versions == (1, 2, 3)
        assert digits.aliases == {"production": 2, "previous": 3}
        assert digits.buckets["generator"][-1] == 64
        assert fashion.manifest.generator.output.shape == (3, 8, 8)
        assert store.listing().broken == ()

    run(main, three)


def test_files_are_those_that_the_manifest_names_and_verified_before_they_are_shown(three: Path) -> None:
    async def main(store: Store) -> None:
        path, spec = await store.file("digits", 1, "samples.png")
        assert path.read_bytes().startswith(b"\x89PNG")
        assert spec == store.manifest("digits", 1).samples
        flip_a_byte(path)
        with pytest.raises(NotFound, match=r"samples\.png of digits version 1 is damaged or gone"):
            await store.file("digits", 1, "samples.png")
        with pytest.raises(UnknownVersion):
            await store.file("digits", 9, "samples.png")
        with pytest.raises(NotFound, match=r"no file 'manifest\.json'; there are: generator\.pt, discriminator\.pt, samples\.png"):
            await store.file("digits", 1, "manifest.json")

    run(main, three)
