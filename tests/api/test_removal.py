"""Versions that are removed: by request, at the command line, and because few are kept."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from api_client import Api, refusal, serving
from consoles import Console

from app.settings import Settings
from training.contract import Manifest
from training.files import versions

pytest_plugins = ["console_fixtures"]
MakeVersion = Callable[..., Manifest]


@pytest.fixture
def own(repository: Path, tmp_path: Path, make_version: MakeVersion) -> Iterator[Api]:
    """A server of `tiny` in versions 1 to 3 and of `pinned`, which is; `theirs` is only read."""
    for version in (1, 2, 3):
        make_version(repository, "tiny", version=version, seed=version)
    make_version(repository, "pinned")
    make_version(tmp_path / "demo", "theirs")
    with serving(Settings(models=(repository, tmp_path / "demo"), state=tmp_path / "state", pins=("pinned",), run_jobs=False)) as api:
        yield api


def delete(api: Api, path: str) -> httpx.Response:
    return api.send(api.build("DELETE", path))


def answering(api: Api, version: object = None) -> int:
    response = api.post("/generate", {"model": "tiny"} | ({} if version is None else {"version": version}))
    assert response.status_code == 200, response.text
    return int(response.headers["X-Version"])


def listed(repository: Path, name: str = "tiny") -> list[int]:
    return list(versions.versions([repository], name))


def test_a_removed_version_is_gone_at_once_and_the_one_before_it_answers(own: Api, repository: Path) -> None:
    assert answering(own) == answering(own, "latest") == 3
    response = delete(own, "/models/tiny/3")
    assert (response.status_code, response.content) == (204, b"")
    assert answering(own) == answering(own, "latest") == 2
    assert "has no version 3" in refusal(own.post("/generate", {"model": "tiny", "version": 3}), 404)["detail"]
    refusal(delete(own, "/models/tiny/3"), 404)
    assert list((repository / "tiny/.removed/3").iterdir()) == []
    assert versions.next_number([repository], "tiny") == 4


def test_the_last_version_takes_its_model_along(own: Api) -> None:
    for number in (1, 2, 3):
        assert delete(own, f"/models/tiny/{number}").status_code == 204
    assert "tiny" not in [model["name"] for model in own.get("/models").json()["models"]]


def test_requests_that_run_end_on_the_version_that_is_removed(own: Api) -> None:
    with ThreadPoolExecutor(8) as pool:
        body = {"model": "tiny", "version": 3, "num_images": 64}
        running = [pool.submit(own.post, "/generate", body) for _ in range(24)]
        assert delete(own, "/models/tiny/3").status_code == 204
        assert {future.result().status_code for future in running} <= {200, 404}
    assert own.get("/models").json()["broken"] == []


def test_what_has_a_name_or_is_pinned_or_lies_elsewhere_stays(own: Api, repository: Path) -> None:
    own.send(own.build("PUT", "/models/tiny/aliases/best", json={"version": 2}))
    for path, reason in (
        ("/models/tiny/2", "tiny version 2 stays: the alias best names it; point that elsewhere first"),
        ("/models/pinned/1", "pinned version 1 stays: it is what pinned answers with, which is pinned (--pin)"),
        ("/models/theirs/1", "demo, which is only read"),
    ):
        assert reason in refusal(delete(own, path), 409)["detail"]
    for path, reason in (
        ("/models/tiny/7", "model 'tiny' has no version '7'; versions: 1, 2, 3"),
        ("/models/tiny/best", "'best' is no number, and a version is removed by its number"),
        ("/models/none/1", "there is no model 'none'"),
    ):
        assert reason in refusal(delete(own, path), 404)["detail"]
    assert listed(repository) == [1, 2, 3]


def test_the_console_removes_a_version_and_all_but_the_newest(
    console: Console, repository: Path, make_version: MakeVersion, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in range(1, 8):
        make_version(repository, "tiny", version=version)
    where = ["--models", repository]
    assert console.done("models", "remove", "tiny/7", *where) == "tiny/7 is removed, and its number is not used again\n"
    assert "tiny is no version: give the model and its number" in console.refused("models", "remove", "tiny", *where)
    assert "has no version '7'" in console.refused("models", "remove", "tiny/7", *where)
    console.done("models", "alias", "tiny", "best", "2", *where)
    assert "the alias best names it" in console.refused("models", "remove", "tiny/2", *where)
    prune = ["models", "prune", "tiny", "--keep", "2", *where]
    assert console.done(*prune, "--dry-run") == "tiny: would remove 1, 3, 4\n"
    assert listed(repository) == [1, 2, 3, 4, 5, 6]
    assert console.done(*prune) == "tiny: removed 1, 3, 4\n"
    assert console.done(*prune) == "tiny: removed nothing\n"
    assert listed(repository) == [2, 5, 6]
    assert "there is no model 'none'" in console.refused("models", "prune", "none", "--keep", "2", *where)
    assert console("models", "prune", "tiny", "--keep", "0", *where).code == 2
    monkeypatch.setenv("GANSERVE_PIN", "tiny")
    console.done("models", "alias", "tiny", "production", "5", *where)
    console.done("models", "unalias", "tiny", "previous", *where)
    console.done("models", "unalias", "tiny", "production", *where)
    assert "tiny version 6 stays: it is what tiny answers with" in console.refused("models", "remove", "tiny/6", *where)


def test_versions_of_a_repository_that_is_only_read_stay_and_count_among_the_newest(
    repository: Path, tmp_path: Path, make_version: MakeVersion
) -> None:
    for number in (1, 3):
        make_version(repository, "tiny", version=number)
    for number in (2, 4):
        make_version(tmp_path / "demo", "tiny", version=number)
    assert versions.prunable([repository, tmp_path / "demo"], "tiny", 2) == [1]
