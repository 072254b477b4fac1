"""The index of jobs, in SQLite and in PostgreSQL: who is first, who has what, and whose it is no longer."""

import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from postgresql import postgresql, programs
from sqlalchemy import create_engine, text

from app.errors import IndexUnavailable
from app.index import ALL, Claim, Entry, Filter, Index
from app.reconciliation import differences, rebuild, reconcile
from app.settings import SettingsError
from training.contract import JobState, TrainConfig
from training.files import runs

LEASE = 60.0


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if programs() is None:
        pytest.skip("Debian's postgresql is not installed")
    with postgresql() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'index.sqlite'}"
    found: str = request.getfixturevalue("server")
    engine = create_engine(found.replace("postgresql:", "postgresql+psycopg:"))
    with engine.begin() as connection:
        connection.execute(text("drop table if exists jobs"))
        connection.execute(text("drop table if exists alembic_version"))
    engine.dispose()
    return found


@pytest.fixture
def index(url: str) -> Iterator[Index]:
    index = Index(url, "here")
    index.open()
    yield index
    index.close()


def entry(id: str, state: JobState = "queued", *, priority: int = 0, place: int = 0, key: str | None = None, model: str = "m") -> Entry:
    return Entry(id, state, priority, place, model, "mlp", "digits", key, 0)


def add(index: Index, *entries: Entry) -> None:
    for each in entries:
        assert index.add(each) == each.id


def test_opening_it_again_changes_nothing(index: Index, url: str) -> None:
    add(index, entry("a"))
    again = Index(url, "here")
    again.open()
    assert again.entries() == [entry("a")]
    again.close()


def test_jobs_are_claimed_by_priority_and_then_in_turn(index: Index) -> None:
    add(index, entry("a", place=1), entry("b", place=3), entry("c", priority=5, place=9), entry("d", place=2), entry("e", "paused"))
    assert index.positions() == {"c": 1, "a": 2, "d": 3, "b": 4}
    held: list[str] = []
    while (claim := index.claim(held, LEASE)) is not None:
        held.append(claim.id)
    assert held == ["c", "a", "d", "b"]
    assert index.positions() == {}


def test_what_a_server_had_claimed_before_it_died_is_its_own_again_before_the_queue(index: Index, url: str) -> None:
    add(index, entry("a"), entry("b", priority=9))
    first = index.claim([], LEASE)
    assert first == Claim("b", 1)
    again = Index(url, "here")
    assert again.claim([], LEASE) == Claim("b", 2)
    assert again.claim(["b"], LEASE) == Claim("a", 1)
    assert not index.release(first, "succeeded"), "it is another attempt's"
    assert again.release(Claim("b", 2), "succeeded")
    again.close()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)  # one server has a SQLite index to itself
def test_another_server_claims_what_is_not_renewed_and_the_first_hears_of_it(index: Index, url: str) -> None:
    other = Index(url, "there")
    add(index, entry("a"))
    mine = index.claim([], 0.2)
    assert mine is not None
    assert other.claim([], LEASE) is None
    assert index.renew([mine], 0.2) == {mine}
    time.sleep(0.3)
    assert other.claim([], LEASE) == Claim("a", 2)
    assert index.renew([mine], LEASE) == set()
    assert not index.release(mine, "failed")
    assert index.claim([], LEASE) is None
    assert other.release(Claim("a", 2), "succeeded")
    other.close()


def test_of_many_who_claim_at_once_each_job_goes_to_one(url: str, index: Index) -> None:
    add(index, *(entry(f"{number:02}") for number in range(40)))
    servers = [Index(url, f"node-{number}") for number in range(4)] if index.is_shared else [index]

    def work(server: Index) -> list[str]:
        held: list[str] = []
        while (claim := server.claim(held, LEASE)) is not None:
            held.append(claim.id)
        return held

    with ThreadPoolExecutor(4) as pool:
        claimed = [id for held in pool.map(work, servers) for id in held]
    assert sorted(claimed) == [f"{number:02}" for number in range(40)]
    for server in servers:
        server.close()


def test_of_requests_with_one_key_one_makes_a_job(index: Index) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = set(pool.map(lambda number: index.add(entry(f"{number:02}", key="mine")), range(20)))
    assert len(made) == 1
    assert index.states().keys() == made
    assert index.made_by("mine") in made
    assert index.made_by("other") is None


def test_jobs_are_found_by_what_they_are_newest_first(index: Index) -> None:
    add(index, entry("1"), entry("2", "failed"), entry("3", model="n"), entry("4", "failed", model="n"))
    assert index.ids(ALL, 10) == ["4", "3", "2", "1"]
    assert index.ids(ALL, 2, after="4") == ["3", "2"]
    assert index.ids(Filter(states=("failed",)), 10) == ["4", "2"]
    assert index.ids(Filter(states=("queued", "failed"), model="n"), 10) == ["4", "3"]
    assert index.ids(Filter(architecture="dcgan"), 10) == []
    assert index.ids(Filter(dataset="digits"), 1) == ["4"]


def test_a_change_wants_the_state_that_it_was_meant_for(index: Index) -> None:
    add(index, entry("a", place=1))
    assert index.change("a", ("queued",), "paused")
    assert not index.change("a", ("queued",), "paused")
    assert index.change("a", ("paused",), "queued", place=index.next_place())
    assert index.entry("a") == entry("a", place=2)
    assert not index.remove("a", ("failed",))
    assert index.remove("a", ("queued",))
    assert index.entry("a") is None


def test_a_database_that_does_not_answer_is_told_as_one() -> None:
    with pytest.raises(IndexUnavailable, match=r"does not answer: .*connection to server on socket"):
        Index("postgresql://nobody@/none?host=/nowhere", "here").open()


@pytest.mark.parametrize(
    ("url", "message"),
    [("here", "'here' is no URL"), ("mysql://a@b/c", "a database of mysql is not supported"), ("sqlite+x:///a", "is not supported")],
)
def test_other_databases_are_refused(url: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Index(url, "here")


def test_an_index_that_somebody_else_is_writing_is_waited_for_and_then_said_to_be_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.database.BUSY_SECONDS", 0.3)
    path = tmp_path / "index.sqlite"
    index = Index(f"sqlite:///{path}", "here")
    index.open()
    with sqlite3.connect(path, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        assert index.ids(ALL, 1) == [], "readers wait for nobody"
        with pytest.raises(IndexUnavailable, match="database is locked"):
            index.add(entry("a"))
        other.execute("ROLLBACK")
    assert index.add(entry("a")) == "a"


# --- beside the directories ---------------------------------------------------------------------------------------------------


def create(folder: Path, state: JobState = "queued", key: str | None = None) -> str:
    id = runs.new_id()
    request = None if key is None else f'{{"key": "{key}", "config": {{}}}}'.encode()
    runs.create(folder / id, TrainConfig(name="m", architecture="mlp", dataset="digits"), id, request, place=len(list(folder.glob("*"))))
    if state != "queued":
        runs.enter_state(folder / id, runs.read_status(folder / id).model_copy(update={"state": state}))
    return id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "jobs").mkdir()
    return tmp_path / "jobs"


def test_an_index_that_is_made_anew_is_equal_to_the_one_before(folder: Path, index: Index) -> None:
    states: tuple[JobState, ...] = ("queued", "paused", "succeeded", "failed", "cancelled")
    for state in states:
        create(folder, state, key=f"key of {state}")
    reconcile(folder, index)
    before = index.entries()
    assert {each.state for each in before} == set(states)
    assert differences(folder, index) == []
    index.replace([])
    assert len(differences(folder, index)) == 5
    assert rebuild(folder, index) == (5, [])
    assert index.entries() == before


def test_what_died_between_a_directory_and_the_index_is_made_up_for(folder: Path, index: Index, caplog: pytest.LogCaptureFixture) -> None:
    unknown, finished, resumed, working, gone, twice = (
        create(folder, state) for state in ("queued", "failed", "queued", "running", "failed", "queued")
    )
    for id, state in ((finished, "queued"), (resumed, "paused"), (working, "running"), (gone, "failed"), (twice, "succeeded")):
        add(index, entry(id, state))
    for path in (folder / gone).iterdir():
        path.unlink() if path.is_file() else path.rmdir()
    first = create(folder, key="mine")
    add(index, entry(first, key="mine"))
    second = create(folder, key="mine")
    reconcile(folder, index, forget=True)
    assert index.states() == {
        unknown: "queued",
        finished: "failed",
        resumed: "queued",
        working: "running",
        twice: "queued",
        first: "queued",
    }
    assert f"job {gone}: its directory is gone" in caplog.text
    assert f"job {second} was asked for by the same request as job {first}" in caplog.text
