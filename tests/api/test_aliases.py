"""Aliases that move while the server serves: production and its way back, the canary and its share."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from api_client import Api, pointers, refusal, serving
from servers import Server

from app.settings import Settings
from ganserve import cli
from training.contract import Manifest
from training.files import versions

MakeVersion = Callable[..., Manifest]
BODY = {"model": "tiny", "num_images": 2, "seed": 7}
NPY = {"accept": "application/x-npy"}


@pytest.fixture
def own(repository: Path, tmp_path: Path, make_version: MakeVersion) -> Iterator[Api]:
    """A server of a repository that the test may change: `tiny` in versions 1 to 3."""
    for version in (1, 2, 3):
        make_version(repository, "tiny", version=version, seed=version)
    with serving(Settings(models=(repository,), state=tmp_path / "state", run_jobs=False)) as api:
        yield api


def put(api: Api, alias: str, body: object, name: str = "tiny") -> httpx.Response:
    return api.send(api.build("PUT", f"/models/{name}/aliases/{alias}", json=body))


def delete(api: Api, alias: str, name: str = "tiny") -> httpx.Response:
    return api.send(api.build("DELETE", f"/models/{name}/aliases/{alias}"))


def answering(api: Api, version: object = None) -> int:
    response = api.post("/generate", BODY | ({} if version is None else {"version": version}))
    assert response.status_code == 200, response.text
    return int(response.headers["X-Version"])


def on_disk(repository: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((repository / "tiny" / versions.ALIASES).read_text())
    return content


# --- production and the way back ------------------------------------------------------------------------------------------------


def test_production_moves_at_once_and_previous_is_the_way_back(own: Api, repository: Path) -> None:
    moved = put(own, "production", {"version": 1}).json()
    assert moved == {"name": "tiny", "version": 1, "aliases": {"previous": 3, "production": 1}, "canary_share": None}
    assert on_disk(repository) == moved["aliases"]
    assert (answering(own), answering(own, "previous")) == (1, 3)
    assert put(own, "production", {"version": 1}).json() == moved, "asked for again, nothing moves"
    back = put(own, "production", {"version": "previous"}).json()
    assert back["aliases"] == {"previous": 1, "production": 3}
    assert answering(own) == 3
    assert put(own, "best", {"version": "previous"}).json()["aliases"] == {"best": 1, "previous": 1, "production": 3}
    assert answering(own, "best") == 1


def test_without_production_the_newest_answers_again(own: Api, repository: Path, make_version: MakeVersion) -> None:
    put(own, "production", {"version": 1})
    make_version(repository, "tiny", version=4, seed=4)
    own.refresh()
    assert answering(own) == 1
    assert delete(own, "production").json() == {"name": "tiny", "version": 4, "aliases": {"previous": 1}, "canary_share": None}
    assert answering(own) == 4
    problem = refusal(delete(own, "production"), 404)
    assert problem["detail"] == "model 'tiny' has no alias 'production'; versions: 1, 2, 3, 4; aliases: previous (1)"


def test_an_alias_stays_where_it_is_when_its_version_is_broken_or_unknown(own: Api, repository: Path) -> None:
    put(own, "production", {"version": 3})
    path = repository / "tiny/1/generator.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    own.refresh()
    assert "version 1 of model 'tiny' is broken: generator.pt" in refusal(put(own, "production", {"version": 1}), 404)["detail"]
    assert "versions: 2, 3" in refusal(put(own, "production", {"version": 9}), 404)["detail"]
    assert refusal(put(own, "production", {"version": 1}, name="tin"), 404)["type"] == "/problems/unknown-model"
    assert refusal(delete(own, "best", name="tin"), 404)["type"] == "/problems/unknown-model"
    assert on_disk(repository) == {"production": 3}
    assert answering(own) == 3


def test_what_cannot_be_said_of_an_alias_is_refused_with_the_field(own: Api) -> None:
    for alias, body, pointer in (
        ("7", {"version": 1}, "/alias"),
        ("Best", {"version": 1}, "/alias"),
        ("a" * 64, {"version": 1}, "/alias"),
        ("best", {}, "/version"),
        ("best", {"version": True}, "/version"),
        ("best", {"version": 1, "weight": 1}, "/weight"),
        ("best", {"version": 1, "share": 0.5}, "/share"),
        ("canary", {"version": 1, "share": 1.5}, "/share"),
        ("canary", {"version": 1, "share": "0.5"}, "/share"),
    ):
        assert pointers(refusal(put(own, alias, body), 422)) == [pointer]


def test_aliases_are_not_moved_where_the_first_repository_cannot_be_written_to(tmp_path: Path, make_version: MakeVersion) -> None:
    mine, demo = tmp_path / "mine", tmp_path / "demo"
    for version in (1, 2):
        make_version(demo, "tiny", version=version)
    versions.write_alias([demo], "tiny", "best", 1)
    mine.mkdir()
    (mine / "tiny").write_text("a file, where the folder of the aliases would be")
    with serving(Settings(models=(mine, demo), state=tmp_path / "state", run_jobs=False)) as api:
        problem = refusal(put(api, "production", {"version": 1}), 409)
        assert problem["detail"] == "the aliases of tiny stay as they are: File exists; the first of --models is the one that is written to"
        assert "'best' is set in a repository that is only read" in refusal(delete(api, "best"), 409)["detail"]
        assert answering(api) == 2


def test_the_console_program_moves_aliases_where_no_server_runs(repository: Path, make_version: MakeVersion) -> None:
    for version in (1, 2):
        make_version(repository, "tiny", version=version)
    here = ["--models", str(repository)]
    assert cli.main(["models", "alias", "tiny", "production", "1", *here]) == 0
    assert on_disk(repository) == {"previous": 2, "production": 1}
    assert cli.main(["models", "alias", "tiny", "production", "previous", *here]) == 0
    assert cli.main(["models", "alias", "tiny", "canary", "1", "--share", "0.25", *here]) == 0
    assert on_disk(repository) == {"canary": {"share": 0.25, "version": 1}, "previous": 1, "production": 2}
    assert cli.main(["models", "unalias", "tiny", "previous", *here]) == 0
    assert on_disk(repository).keys() == {"canary", "production"}
    for wrong in (
        ["alias", "tiny", "best", "1", "--share", "0.5"],
        ["alias", "tiny", "canary", "1", "--share", "2"],
        ["unalias", "tiny", "x"],
    ):
        assert cli.main(["models", *wrong, *here]) == 1


# --- the canary -----------------------------------------------------------------------------------------------------------------


def test_the_canary_answers_its_share_exactly_and_evenly_and_never_who_names_a_version(own: Api) -> None:
    put(own, "production", {"version": 2})
    card = put(own, "canary", {"version": 3, "share": 0.3}).json()
    assert (card["version"], card["aliases"]["canary"], card["canary_share"]) == (2, 3, 0.3)
    assert own.get("/models").json()["models"][0]["canary_share"] == 0.3
    told = []
    for _ in range(20):
        told.append(answering(own))
        assert [answering(own, named) for named in ("production", 2, "2")] == [2, 2, 2]
    assert told == [2, 2, 2, 3, 2, 2, 3, 2, 2, 3] * 2
    assert put(own, "canary", {"version": 3}).json()["canary_share"] is None
    assert [answering(own) for _ in range(4)] == [2] * 4


def test_a_broken_canary_is_left_out_and_named(own: Api, repository: Path) -> None:
    put(own, "production", {"version": 2})
    put(own, "canary", {"version": 3, "share": 1})
    assert [answering(own) for _ in range(3)] == [3, 3, 3]
    (repository / "tiny/3/generator.pt").unlink()
    own.refresh()
    assert [answering(own) for _ in range(3)] == [2, 2, 2]
    assert [(item["name"], item["version"]) for item in own.get("/models").json()["broken"]] == [("tiny", 3)]
    assert "is broken" in refusal(own.post("/generate", BODY | {"version": "canary"}), 404)["detail"]


# --- under load -----------------------------------------------------------------------------------------------------------------


def test_twenty_swaps_and_their_rollbacks_under_load_fail_no_request_and_mix_no_versions(
    start: Callable[..., Server], repository: Path, make_version: MakeVersion
) -> None:
    for version in range(1, 9):
        make_version(repository, "tiny", version=version, seed=version)
    server = start(None, [repository])

    async def main() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
            answers: dict[int, set[bytes]] = {}
            ends = asyncio.Event()

            async def ask() -> None:
                while not ends.is_set():
                    response = await client.post("/generate", json=BODY, headers=NPY)
                    assert response.status_code == 200, response.text
                    answers.setdefault(int(response.headers["X-Version"]), set()).add(response.content)

            async def move(version: int | str) -> None:
                response = await client.put("/models/tiny/aliases/production", json={"version": version})
                assert response.status_code == 200, response.text
                after = await client.post("/generate", json=BODY, headers=NPY)
                serving = response.json()["version"]
                assert after.headers["X-Version"] == str(serving), "it serves when the answer comes"
                answers.setdefault(serving, set()).add(after.content)

            clients = [asyncio.create_task(ask()) for _ in range(4)]
            for number in range(1, 8):
                for version in (number, "previous", number):
                    await move(version)
            ends.set()
            await asyncio.gather(*clients)
            assert set(answers) == set(range(1, 9))
            for version, contents in answers.items():
                named = await client.post("/generate", json=BODY | {"version": version}, headers=NPY)
                assert contents == {named.content}, version

    asyncio.run(main())
