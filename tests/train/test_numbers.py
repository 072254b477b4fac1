"""Numbers of versions: taken once and for ever, whoever dies and whoever tries at once."""

import json
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.files import numbers, versions
from training.files.directories import staging

# Publishers at once, each a process of its own that kills itself at the n-th change that it makes on the disk; at 0 never, and then it
# says what number it was given, and how many changes it made.
PUBLISHERS = """
import json, os, signal, sys
from pathlib import Path
from training.files import versions
from training.files.directories import staging

def publish(folder, run, deadly):
    seen = 0
    def watch(event, arguments):
        nonlocal seen
        writes = event == "open" and (arguments[1] in ("w", "wb", "xb") or isinstance(arguments[0], str) and arguments[2] & os.O_DIRECTORY)
        if (writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")) and str(folder) in str(arguments[0]):
            seen += 1
            if seen == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    number = versions.reserve([folder], "mine", run)
    with staging(folder) as staged:
        (staged / "manifest.json").write_text(run)
        try:
            versions.publish(staged, [folder], "mine", number)
        except FileExistsError:
            pass
    os.write(1, f"{number} {seen}\\n".encode())

started = []
for folder, run, deadly in json.loads(sys.argv[1]):
    started.append(os.fork())
    if not started[-1]:
        publish(Path(folder), run, deadly)
        os._exit(0)
os.write(1, b" ".join(b"%d" % os.waitpid(process, 0)[1] for process in started))
"""


def publishers(*wanted: tuple[Path, str, int]) -> tuple[list[list[int]], list[int]]:
    """What those said that lived, in no order, and how each has ended: 0, or the signal."""
    words = json.dumps([(str(folder), run, deadly) for folder, run, deadly in wanted])
    *lines, ends = subprocess.run([sys.executable, "-c", PUBLISHERS, words], check=True, capture_output=True, text=True).stdout.splitlines()
    return [[int(word) for word in line.split()] for line in lines], [int(end) for end in ends.split()]


def publish(folder: Path, run: str) -> int:
    number = versions.reserve([folder], "mine", run)
    with staging(folder) as staged:
        (staged / versions.MANIFEST).write_text(run)
        versions.publish(staged, [folder], "mine", number)
    return number


def found(folder: Path) -> dict[int, str]:
    return {number: (path / versions.MANIFEST).read_text() for number, path in versions.versions([folder], "mine").items()}


def test_a_run_that_is_killed_at_any_change_on_the_disk_publishes_once_and_under_the_number_it_reserved(tmp_path: Path) -> None:
    [[_, changes]], _ = publishers((tmp_path / "whole", "a-run", 0))
    assert changes > 15
    said, ends = publishers(*((tmp_path / str(deadly), "a-run", deadly) for deadly in range(1, changes + 1)))
    assert (said, set(ends)) == ([], {signal.SIGKILL})
    for folder in (tmp_path / str(deadly) for deadly in range(1, changes + 1)):
        was = numbers.reserved(folder / "mine")
        other = publish(folder, "another")
        with staging(folder) as staged:
            (staged / versions.MANIFEST).write_text("a-run")
            number = versions.reserve([folder], "mine", "a-run")
            if number not in versions.versions([folder], "mine"):
                versions.publish(staged, [folder], "mine", number)
        assert found(folder) == {number: "a-run", other: "another"}
        assert was <= {number}, "what it had reserved it uses"
        assert sorted([number, other]) == [1, 2]


def test_attempts_of_one_run_at_once_publish_one_version(tmp_path: Path) -> None:
    said, ends = publishers(*((tmp_path, f"run-{attempt // 2}", 0) for attempt in range(16)))
    assert set(ends) == {0}
    given = [number for number, _ in said]
    assert sorted(found(tmp_path)) == sorted(set(given))
    assert [given.count(number) for number in set(given)] == [2] * 8
    assert sorted(found(tmp_path).values()) == [f"run-{run}" for run in range(8)]


def test_many_attempts_of_many_runs_at_once_have_a_number_a_run(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        given = list(pool.map(lambda attempt: versions.reserve([tmp_path], "mine", f"run-{attempt % 6}"), range(48)))
    assert [given[:6] == given[at : at + 6] for at in range(0, 48, 6)] == [True] * 8
    assert len(set(given[:6])) == 6


def test_a_number_that_was_reserved_stays_taken(tmp_path: Path) -> None:
    assert versions.reserve([tmp_path], "mine", "a-run") == 1
    assert versions.next_number([tmp_path], "mine") == 2
    assert (publish(tmp_path, "another"), versions.reserve([tmp_path], "mine", "a-run")) == (2, 1)
    assert versions.reserve([tmp_path / "other", tmp_path], "mine", "a-run") == 3, "that of another repository too"


def test_a_repository_that_has_only_version_directories_goes_on_after_them(tmp_path: Path) -> None:
    for number in (1, 7):
        (tmp_path / "mine" / str(number)).mkdir(parents=True)
    assert publish(tmp_path, "a-run") == 8


def test_a_removed_version_is_gone_and_its_number_is_not_used_again(tmp_path: Path) -> None:
    (tmp_path / "mine/1/folder").mkdir(parents=True)
    (tmp_path / "mine/1/file").write_text("content")
    numbers.remove(tmp_path / "mine", 1)
    assert versions.versions([tmp_path], "mine") == {}
    assert list((tmp_path / "mine/.removed/1").iterdir()) == []
    assert publish(tmp_path, "a-run") == 2
    numbers.remove(tmp_path / "mine", 2)
    assert publish(tmp_path, "another") == 3
    with pytest.raises(versions.RemovedError, match="mine version 2 was removed, and is not made again"):
        publish(tmp_path, "a-run")


def test_a_removed_version_that_somebody_puts_back_is_not_seen(tmp_path: Path) -> None:
    publish(tmp_path, "a-run")
    numbers.remove(tmp_path / "mine", 1)
    (tmp_path / "mine/1").mkdir()
    assert versions.versions([tmp_path], "mine") == {}
    assert versions.names([tmp_path]) == []


def test_latest_is_the_newest_version_whatever_production_names(tmp_path: Path) -> None:
    publish(tmp_path, "first")
    publish(tmp_path, "second")
    versions.write_alias([tmp_path], "mine", "production", 1)
    assert [versions.find(reference, [tmp_path]).name for reference in ("mine", "mine/latest")] == ["1", "2"]
    with pytest.raises(ValueError, match=r"'latest' cannot be an alias: .* not 'latest', which is the newest version"):
        versions.write_alias([tmp_path], "mine", "latest", 1)


def test_a_number_is_taken_by_one_alone(tmp_path: Path) -> None:
    assert numbers.take(tmp_path / "mine", 3, "first")
    assert numbers.take(tmp_path / "mine", 3, "first")
    assert not numbers.take(tmp_path / "mine", 3, "second")
    assert versions.next_number([tmp_path], "mine") == 4


@pytest.mark.parametrize("run", ["", "../run", "a/b", ".hidden", "a" * 200, "a\n"])
def test_what_cannot_name_a_run_is_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot name a run"):
        versions.reserve([tmp_path], "mine", run)
