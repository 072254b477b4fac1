"""The events of a run: numbered by their lines, whole or not at all, and never lost between a status and its telling."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.contract import JobStatus, Metrics, Progress, now
from training.files import events
from training.files.events import EVENTS, ImagesData, Reader


def status(state: str, message: str = "", images: int = 0) -> JobStatus:
    progress = Progress(images=images, total_images=100)
    return JobStatus.model_validate({"id": "a", "state": state, "message": message, "progress": progress, "created_at": now()})


def sample(folder: Path, images: int) -> None:
    events.append(folder, "sample", ImagesData(images=images))


def seen(reader: Reader, *, but_the_end: bool = False) -> list[tuple[int, str]]:
    return [(number, event.event) for number, event in reader.read(but_the_end=but_the_end)]


def test_events_are_numbered_from_one_and_read_as_they_come(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    assert seen(reader) == []
    events.tell_state(tmp_path, status("queued"))
    sample(tmp_path, 10)
    assert seen(reader) == [(1, "state"), (2, "sample")]
    assert seen(reader) == []
    events.append(tmp_path, "metrics", Metrics(images=10, seconds=1.0))
    assert seen(reader) == [(3, "metrics")]
    assert seen(Reader(tmp_path, after=1)) == [(2, "sample"), (3, "metrics")]
    assert seen(Reader(tmp_path, after=3)) == []
    assert events.count(tmp_path) == 3


def test_a_line_that_is_being_written_is_not_read_and_one_of_a_dead_writer_is_dropped(tmp_path: Path) -> None:
    sample(tmp_path, 1)
    reader = Reader(tmp_path)
    with (tmp_path / EVENTS).open("ab") as file:
        file.write(b'{"event":"sample","at":"2026-11')
    assert seen(reader) == [(1, "sample")]
    sample(tmp_path, 2)
    assert [(number, event.data) for number, event in reader.read()] == [(2, {"images": 2})]
    assert seen(Reader(tmp_path)) == [(1, "sample"), (2, "sample")]


def test_a_file_that_is_one_torn_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / EVENTS).write_bytes(b"x" * 200_000)
    sample(tmp_path, 1)
    assert seen(Reader(tmp_path)) == [(1, "sample")]


def test_a_state_is_told_once_however_often_it_is_made_sure_of(tmp_path: Path) -> None:
    for _ in range(3):
        events.tell_state(tmp_path, status("running"))
    events.tell_state(tmp_path, status("running", images=50))  # a beat is no news
    events.tell_state(tmp_path, status("queued", "stopped"))
    events.tell_state(tmp_path, status("running"))
    assert [event.data["state"] for _, event in Reader(tmp_path).read()] == ["running", "queued", "running"]


def test_several_writers_leave_no_gap_and_no_half_line(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda images: sample(tmp_path, images), range(200)))
    found = Reader(tmp_path).read()
    assert [number for number, _ in found] == list(range(1, 201))
    assert sorted(event.data["images"] for _, event in found) == list(range(200))  # type: ignore[type-var]


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_the_end_can_be_left_for_later_but_not_an_end_that_was_none(tmp_path: Path, state: str) -> None:
    events.tell_state(tmp_path, status(state))
    reader = Reader(tmp_path)
    assert seen(reader, but_the_end=True) == []
    events.tell_state(tmp_path, status("queued"))  # somebody tries it again
    assert seen(reader, but_the_end=True) == [(1, "state"), (2, "state")]
    events.tell_state(tmp_path, status(state))
    assert seen(reader, but_the_end=True) == []
    assert seen(reader) == [(3, "state")]
