import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from training.contract import FileSpec, Metrics, TrainConfig, Tuning
from training.files import runs, versions
from training.files.directories import (
    STAGING,
    DamagedFileError,
    commit,
    describe,
    read_verified,
    sha256_of,
    staging,
    verify,
    write_atomically,
)
from training.files.locks import LockedError, hold, is_held


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- directories --------------------------------------------------------------------------------------------------------------


def test_a_file_is_described_by_its_name_size_and_hash(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    spec = describe(path)
    abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2, appendix B.1
    assert spec == FileSpec(file="a.txt", sha256=abc, size_bytes=3)
    assert sha256_of(path) == abc
    assert verify(tmp_path, spec) == path


def test_a_file_that_differs_from_its_document_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    spec = describe(path)
    path.write_bytes(b"abd")
    with pytest.raises(DamagedFileError, match=r"^a\.txt does not have the sha256 that its document says$"):
        verify(tmp_path, spec)
    path.write_bytes(b"abcd")
    with pytest.raises(DamagedFileError, match=r"^a\.txt has 4 bytes; its document says 3$"):
        verify(tmp_path, spec)
    path.unlink()
    with pytest.raises(DamagedFileError, match=r"^a\.txt is missing$"):
        verify(tmp_path, spec)


def test_neither_a_link_nor_a_directory_is_taken_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"abc")
    spec = describe(tmp_path / "other").model_copy(update={"file": "a.txt"})
    (tmp_path / "a.txt").symlink_to("other")
    with pytest.raises(DamagedFileError, match="is missing"):
        verify(tmp_path, spec)
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(DamagedFileError, match="is missing"):
        verify(tmp_path, spec)


def test_a_file_is_replaced_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, b"old")
    reader = path.open("rb")
    write_atomically(path, b"new")
    with reader:
        assert reader.read() == b"old", "who reads already, reads the old bytes to their end"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["a.txt"]


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()  # cannot be replaced by a file
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "a.txt", b"new")
    assert names(tmp_path) == ["a.txt"]


def test_what_is_staged_is_seen_by_one_rename(tmp_path: Path) -> None:
    with staging(tmp_path) as staged:
        assert list(staged.iterdir()) == []
        assert staged.parent == tmp_path / STAGING
        (staged / "inner").mkdir()
        (staged / "inner" / "a.txt").write_bytes(b"abc")
        assert names(tmp_path) == [STAGING]
        commit(staged, tmp_path / "done")
    assert (tmp_path / "done" / "inner" / "a.txt").read_bytes() == b"abc"
    assert names(tmp_path / STAGING) == []


def test_what_is_not_committed_goes_away(tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), staging(tmp_path) as staged:
        (staged / "a.txt").write_bytes(b"abc")
        raise KeyboardInterrupt
    assert names(tmp_path / STAGING) == []


def test_two_may_stage_at_once(tmp_path: Path) -> None:
    with staging(tmp_path) as first, staging(tmp_path) as second:
        assert first != second


def test_a_target_that_is_there_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    (tmp_path / "done" / "a.txt").write_bytes(b"old")
    with staging(tmp_path) as staged:
        (staged / "a.txt").write_bytes(b"new")
        with pytest.raises(FileExistsError, match="done is there already") as caught:
            commit(staged, tmp_path / "done")
    assert caught.value.errno == errno.EEXIST
    assert (tmp_path / "done" / "a.txt").read_bytes() == b"old"
    assert names(tmp_path / STAGING) == []


def test_another_failure_of_the_rename_is_told_as_it_is(tmp_path: Path) -> None:
    with staging(tmp_path) as staged, pytest.raises(FileNotFoundError):
        commit(staged, tmp_path / "missing" / "done")


# --- locks --------------------------------------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from training.files.locks import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Another process that holds the lock of tmp_path until its standard input ends."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_free_before_and_after_it_is_held(tmp_path: Path) -> None:
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    with hold(tmp_path):
        pass


def test_a_lock_is_freed_when_its_block_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), hold(tmp_path):
        raise KeyError
    assert not is_held(tmp_path)


def test_what_another_process_holds_is_refused(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    assert is_held(tmp_path)
    with pytest.raises(LockedError, match=f"^another process works in {tmp_path}$"), hold(tmp_path, patience_seconds=0):
        raise AssertionError("both hold it")
    assert holder.poll() is None


def test_the_kernel_frees_the_lock_of_a_process_that_is_killed(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert not is_held(tmp_path)
    with hold(tmp_path, patience_seconds=0):
        pass


def test_a_child_does_not_inherit_the_lock(tmp_path: Path) -> None:
    code = "import sys; print('runs', flush=True); sys.stdin.read()"
    with hold(tmp_path):
        child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, close_fds=False)
        assert child.stdout is not None
        assert child.stdout.readline() == "runs\n"
    try:
        assert not is_held(tmp_path)
    finally:
        child.communicate()


def test_whoever_means_to_work_outlasts_a_glance(tmp_path: Path, holder: "subprocess.Popen[str]") -> None:
    assert holder.stdin is not None
    holder.stdin.close()  # it lets go within its patience
    with hold(tmp_path, patience_seconds=60):
        assert is_held(tmp_path)


# --- runs ---------------------------------------------------------------------------------------------------------------------

CONFIG = TrainConfig(total_images=1000, name="mine")


def line(images: int) -> Metrics:
    return Metrics(images=images, seconds=1.0, images_per_second=10.0, losses={"discriminator_loss": 0.5})


def test_a_new_run_is_queued_and_whole(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "first"
    status = runs.create(folder, CONFIG, "20261122-104500-9f3c2a7b41d0")
    assert names(folder) == ["best", "checkpoints", "config.json", "events.jsonl", "log.txt", "metrics.jsonl", "samples", "status.json"]
    assert (status.state, status.attempts, status.progress.images, status.progress.total_images) == ("queued", 0, 0, 1000)
    assert runs.read_status(folder) == status
    assert runs.read_config(folder) == CONFIG
    assert not runs.is_cancel_asked(folder)


def test_a_run_directory_is_not_made_twice(tmp_path: Path) -> None:
    first = runs.create(tmp_path / "run", CONFIG, "20261122-104500-9f3c2a7b41d0")
    with pytest.raises(FileExistsError):
        runs.create(tmp_path / "run", CONFIG.model_copy(update={"seed": 1}), "20261122-104500-9f3c2a7b41d0")
    assert runs.read_status(tmp_path / "run") == first


def test_ids_are_sorted_by_time_and_not_to_be_guessed() -> None:
    ids = [runs.new_id() for _ in range(50)]
    assert len(set(ids)) == 50
    times = [id.rsplit("-", 1)[0] for id in ids]
    assert times == sorted(times)
    assert all(len(id.rsplit("-", 1)[1]) == 12 for id in ids)


def test_a_status_is_replaced_whole(tmp_path: Path) -> None:
    status = runs.create(tmp_path / "run", CONFIG, "20261122-104500-9f3c2a7b41d0")
    changed = status.model_copy(update={"state": "running", "attempts": 1})
    runs.write_status(tmp_path / "run", changed)
    assert runs.read_status(tmp_path / "run") == changed
    assert not [name for name in names(tmp_path / "run") if name.startswith(".")]


@pytest.mark.parametrize("cut", ["", '{"images": 3'], ids=["whole", "cut by a crash"])
def test_metrics_past_a_checkpoint_are_dropped(cut: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.create(folder, CONFIG, "20261122-104500-9f3c2a7b41d0")
    for images in (100, 200, 300):
        runs.append_metrics(folder, line(images))
    with (folder / runs.METRICS).open("a") as file:
        file.write(cut)
    runs.truncate_metrics(folder, 300)
    assert [json.loads(text)["images"] for text in (folder / runs.METRICS).read_text().splitlines()] == [100, 200, 300]
    runs.truncate_metrics(folder, 200)
    runs.append_metrics(folder, line(250))
    assert [json.loads(text)["images"] for text in (folder / runs.METRICS).read_text().splitlines()] == [100, 200, 250]
    runs.truncate_metrics(folder, 0)
    assert (folder / runs.METRICS).read_bytes() == b""


def test_a_wish_to_cancel_outlives_whoever_made_it(tmp_path: Path) -> None:
    runs.create(tmp_path / "run", CONFIG, "20261122-104500-9f3c2a7b41d0")
    runs.ask_to_cancel(tmp_path / "run")
    runs.ask_to_cancel(tmp_path / "run")
    assert runs.is_cancel_asked(tmp_path / "run")


def test_samples_are_sorted_by_images(tmp_path: Path) -> None:
    paths = [runs.sample_path(tmp_path, images) for images in (5, 50, 10**9)]
    assert paths == sorted(paths)
    assert paths[0] == tmp_path / "samples" / "000000000005.png"


def test_a_wish_to_stop_is_seen_by_whoever_works_there(tmp_path: Path) -> None:
    runs.create(tmp_path / "run", CONFIG, "20261122-104500-9f3c2a7b41d0")
    assert not runs.is_stop_asked(tmp_path / "run")
    runs.ask_to_stop(tmp_path / "run")
    assert runs.is_stop_asked(tmp_path / "run")


def test_the_whole_lines_of_metrics_and_the_newest_checkpoint_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    runs.create(folder, CONFIG, "20261122-104500-9f3c2a7b41d0")
    assert (runs.read_metrics(folder), runs.checkpoint_images(folder)) == ([], 0)
    for images in (100, 200):
        runs.append_metrics(folder, line(images))
        (folder / runs.CHECKPOINTS / f"{images:012d}").mkdir()
    with (folder / runs.METRICS).open("a") as file:
        file.write('{"images": 300')  # cut by a crash
    assert (runs.read_metrics(folder), runs.checkpoint_images(folder)) == ([line(100), line(200)], 200)


# --- versions -----------------------------------------------------------------------------------------------------------------


def add(repository: Path, name: str, *numbers: int) -> None:
    for number in numbers:
        (repository / name / str(number)).mkdir(parents=True)
        (repository / name / str(number) / versions.MANIFEST).write_text("{}")


def test_no_repository_holds_nothing(tmp_path: Path) -> None:
    assert versions.names([tmp_path / "missing"]) == []
    assert versions.versions([tmp_path / "missing"], "mine") == {}
    assert versions.next_number([tmp_path / "missing"], "mine") == 1


def test_versions_are_sorted_by_number(tmp_path: Path) -> None:
    add(tmp_path, "mine", 10, 9, 1)
    assert list(versions.versions([tmp_path], "mine")) == [1, 9, 10]
    assert versions.next_number([tmp_path], "mine") == 11


def test_what_is_no_version_is_left_out(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1)
    for name in ("01", "x", ".staging", "-1", "1.5", "²", "٣", "0x2"):
        (tmp_path / "mine" / name).mkdir()
    (tmp_path / "mine" / "7").write_text("a file")
    (tmp_path / "NotAName" / "1").mkdir(parents=True)
    (tmp_path / STAGING / "1").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("a file")
    assert list(versions.versions([tmp_path], "mine")) == [1]
    assert versions.names([tmp_path]) == ["mine"]


def test_a_linked_model_is_left_out(tmp_path: Path) -> None:
    add(tmp_path / "elsewhere", "mine", 1)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine").symlink_to(tmp_path / "elsewhere" / "mine")
    assert versions.names([tmp_path / "models"]) == []


def test_several_repositories_are_one_and_the_first_comes_first(tmp_path: Path) -> None:
    mine, demo = tmp_path / "mine", tmp_path / "demo"
    add(mine, "digits", 2, 3)
    add(demo, "digits", 1, 2)
    add(demo, "fashion", 5)
    repositories = [mine, demo]
    assert versions.names(repositories) == ["digits", "fashion"]
    assert versions.versions(repositories, "digits") == {1: demo / "digits/1", 2: mine / "digits/2", 3: mine / "digits/3"}
    assert versions.next_number(repositories, "digits") == 4
    assert versions.next_number(repositories, "fashion") == 6


def test_a_damaged_version_keeps_its_number(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1)
    (tmp_path / "mine" / "2").mkdir()
    assert versions.next_number([tmp_path], "mine") == 3


def test_a_reference_finds_a_number_an_alias_or_what_answers(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1, 2, 3)
    assert versions.find("mine", [tmp_path]).name == "3"
    assert versions.find("mine/1", [tmp_path]).name == "1"
    versions.write_alias([tmp_path], "mine", "production", 2)
    versions.write_alias([tmp_path], "mine", "best", 1)
    assert versions.find("mine", [tmp_path]).name == "2"
    assert versions.find("mine/production", [tmp_path]).name == "2"
    assert versions.find("mine/best", [tmp_path]).name == "1"
    versions.write_alias([tmp_path], "mine", "production", 3)
    assert versions.find("mine", [tmp_path]).name == "3"
    assert versions.read_aliases([tmp_path], "mine") == {"best": 1, "production": 3, "previous": 2}


def test_a_reference_to_nothing_lists_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(LookupError, match=r"^there is no model 'mine'; there are: none yet$"):
        versions.find("mine", [tmp_path])
    add(tmp_path, "mine", 1, 2)
    versions.write_alias([tmp_path], "mine", "best", 1)
    with pytest.raises(LookupError, match=r"^there is no model 'other'; there are: mine$"):
        versions.find("other", [tmp_path])
    for wanted in ("9", "worst", "01x", "-1", "²"):
        with pytest.raises(LookupError, match=f"^model 'mine' has no version '{wanted}'; versions: 1, 2; aliases: best$"):
            versions.find(f"mine/{wanted}", [tmp_path])


@pytest.mark.parametrize("reference", ["", "/", "..", "../mine", "mine/../mine", "mine/1/2", "MINE", "mine/1/", "/mine"])
def test_a_reference_never_leaves_the_repository(reference: str, tmp_path: Path) -> None:
    add(tmp_path / "models", "mine", 1)
    add(tmp_path, "mine", 1)
    with pytest.raises(LookupError):
        versions.find(reference, [tmp_path / "models"])


def test_an_alias_to_a_version_that_is_gone_is_told(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1, 2)
    versions.write_alias([tmp_path], "mine", "production", 1)
    (tmp_path / "mine/1" / versions.MANIFEST).unlink()
    (tmp_path / "mine/1").rmdir()
    with pytest.raises(LookupError, match="has no version"):
        versions.find("mine", [tmp_path])


@pytest.mark.parametrize("alias", ["", "3", "Best", "a/b", "..", "a" * 64])
def test_what_cannot_name_an_alias_is_refused(alias: str, tmp_path: Path) -> None:
    add(tmp_path, "mine", 1)
    with pytest.raises(ValueError, match="cannot be an alias"):
        versions.write_alias([tmp_path], "mine", alias, 1)
    assert versions.read_aliases([tmp_path], "mine") == {}


def test_an_alias_to_no_version_is_refused(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1)
    with pytest.raises(LookupError, match=r"^model 'mine' has no version '2'; versions: 1; aliases: none$"):
        versions.write_alias([tmp_path], "mine", "best", 2)


def test_aliases_are_written_to_the_first_repository_alone(tmp_path: Path) -> None:
    mine, demo = tmp_path / "mine", tmp_path / "demo"
    add(demo, "digits", 1, 2)
    versions.write_alias([demo], "digits", "production", 1)
    versions.write_alias([demo], "digits", "old", 1)
    before = (demo / "digits" / versions.ALIASES).read_bytes()
    versions.write_alias([mine, demo], "digits", "production", 2)
    assert (demo / "digits" / versions.ALIASES).read_bytes() == before
    assert versions.read_aliases([mine, demo], "digits") == {"production": 2, "previous": 1, "old": 1}


@pytest.mark.parametrize("share", ["2", "-0.1", "NaN", '"0.5"', "null", "true"])
def test_a_share_that_is_none_is_an_error(share: str, tmp_path: Path) -> None:
    add(tmp_path, "mine", 1)
    versions.write_alias([tmp_path], "mine", "canary", 1, share=0.25)
    assert versions.read_pointers([tmp_path], "mine") == {"canary": (1, 0.25)}
    (tmp_path / "mine" / versions.ALIASES).write_text(f'{{"canary": {{"version": 1, "share": {share}}}}}')
    with pytest.raises(ValueError, match="alias"):
        versions.read_pointers([tmp_path], "mine")


def test_an_alias_without_a_share_has_none(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1)
    (tmp_path / "mine" / versions.ALIASES).write_text('{"canary": {"version": 1}}')
    assert versions.read_pointers([tmp_path], "mine") == {"canary": (1, 0)}


def test_an_alias_that_another_repository_sets_too_cannot_be_taken_away(tmp_path: Path) -> None:
    mine, demo = tmp_path / "mine", tmp_path / "demo"
    add(demo, "digits", 1, 2)
    versions.write_alias([demo], "digits", "production", 1)
    versions.write_alias([mine, demo], "digits", "production", 2)
    with pytest.raises(OSError, match="'production' is set in a repository that is only read: point it at another version instead"):
        versions.remove_alias([mine, demo], "digits", "production")
    assert versions.read_aliases([mine, demo], "digits")["production"] == 2


def test_an_alias_that_is_taken_away_leaves_the_others(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1, 2)
    versions.write_alias([tmp_path], "mine", "production", 1)
    versions.write_alias([tmp_path], "mine", "best", 2)
    versions.remove_alias([tmp_path], "mine", "production")
    assert versions.read_aliases([tmp_path], "mine") == {"best": 2, "previous": 1}
    versions.remove_alias([tmp_path], "mine", "previous")
    with pytest.raises(LookupError, match=r"^model 'mine' has no alias 'previous'; aliases: best$"):
        versions.remove_alias([tmp_path], "mine", "previous")


def test_the_way_back_is_kept_where_the_same_version_answers_on(tmp_path: Path) -> None:
    add(tmp_path, "mine", 1, 2)
    versions.write_alias([tmp_path], "mine", "production", 1)
    versions.write_alias([tmp_path], "mine", "production", 2)
    versions.remove_alias([tmp_path], "mine", "production")
    assert versions.read_aliases([tmp_path], "mine") == {"previous": 1}


@pytest.mark.parametrize("content", ["[]", '{"best": "1"}', '{"best": true}', '{"Best": 1}', "{", '{"3": 1}', "[" * 100_000])
def test_aliases_that_cannot_be_read_are_an_error(content: str, tmp_path: Path) -> None:
    add(tmp_path, "mine", 1)
    (tmp_path / "mine" / versions.ALIASES).write_text(content)
    with pytest.raises(ValueError, match=r"alias|property name|Expecting|nested"):
        versions.read_aliases([tmp_path], "mine")


def test_a_run_that_was_begun_before_layouts_were_chosen_goes_on_with_its_threads(tmp_path: Path) -> None:
    runs.create(tmp_path / "run", TrainConfig(), runs.new_id())
    old = json.loads((tmp_path / "run" / runs.STATUS).read_text())
    del old["tuning"]
    (tmp_path / "run" / runs.STATUS).write_text(json.dumps(old | {"num_threads": 3}))
    assert runs.read_status(tmp_path / "run").tuning == Tuning(num_threads=3, memory_layout="contiguous")


def test_verified_bytes_are_those_of_a_file_that_is_no_link_and_has_the_size_and_the_hash(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"weights")
    spec = describe(path)
    assert read_verified(tmp_path, spec) == b"weights"
    for content, words in ((b"weighty", "does not have the sha256"), (b"weight", "has 6 bytes; its document says 7")):
        path.write_bytes(content)
        with pytest.raises(DamagedFileError, match=words):
            read_verified(tmp_path, spec)
    path.unlink()
    with pytest.raises(DamagedFileError, match="is missing"):
        read_verified(tmp_path, spec)
    (tmp_path / "elsewhere.pt").write_bytes(b"weights")
    path.symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(DamagedFileError, match="is missing"):
        read_verified(tmp_path, spec)
    path.unlink()
    path.mkdir()
    with pytest.raises(DamagedFileError, match="is missing"):
        read_verified(tmp_path, spec)
