"""Versions out of a repository and into another one: as a ZIP, through a directory and through a store."""

import io
import shutil
import sys
import zipfile
from pathlib import Path

import fsspec
import httpx
import pytest
import tiny_versions
from api_client import refusal, serving
from consoles import Console, Terminal

from app.settings import Settings
from ganserve import stores
from training.contract import Manifest, UserError
from training.files import digests, numbers, versions

pytest_plugins = ["console_fixtures"]
MANIFEST = versions.MANIFEST


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """The repository of another machine, with `tiny` in versions 3 and 4."""
    repository = tmp_path / "theirs" / "models"
    for version in (3, 4):
        tiny_versions.publish(repository, "tiny", tiny_versions.single(), version=version)
    return repository


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def digest(folder: Path) -> str:
    return digests.digest_of((folder / MANIFEST).read_bytes())


def confirmed(folder: Path) -> tuple[str, ...]:
    return ("--yes", "--digest", digest(folder))


def zip_of(files: dict[str, bytes], path: Path, prefix: str = "tiny/3/") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(prefix + name, data)
    return path


def known(tmp_path: Path) -> frozenset[str]:
    return digests.known(tmp_path / "state" / digests.FOLDER) - digests.SHIPPED.keys()


# --- over HTTP ----------------------------------------------------------------------------------------------------------------


def test_a_version_is_downloaded_as_one_zip_of_all_its_files_which_is_the_same_each_time(
    client: httpx.Client, server: str, console: Console, root: Path
) -> None:
    answer = client.get("/models/digits/latest/archive")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-disposition"] == 'attachment; filename="digits-1.zip"'
    folder = root / "models" / "digits" / "1"
    assert answer.headers["etag"] == f'"{digest(folder)}"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.infolist()[0].date_time > (2026, 1, 1)
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"digits/1/{name}": data for name, data in content(folder).items()
        }
    said = f"digits/1, sha256 of its manifest {digest(folder)}\n"
    assert console.done("models", "download", "digits/1", "--server", server) == f"digits-1.zip: {said}"
    assert console.done("models", "download", "digits", "--models", root / "models", "-o", "here.zip") == f"here.zip: {said}"
    assert Path("digits-1.zip").read_bytes() == Path("here.zip").read_bytes() == answer.content
    assert "model 'digits' has no version '7'" in console.refused("models", "download", "digits/7", "--server", server)


def test_a_version_that_is_damaged_or_not_there_is_not_downloaded(theirs: Path, tmp_path: Path) -> None:
    with serving(Settings(models=(theirs,), state=tmp_path / "theirs" / "state", run_jobs=False)) as api:
        assert refusal(api.get("/models/tiny/1/archive"), 404)["type"] == "/problems/unknown-version"
        (theirs / "tiny/4/samples.png").write_bytes(b"something else")
        detail = refusal(api.get("/models/tiny/4/archive"), 404)["detail"]
        assert detail.startswith("tiny version 4 is damaged or gone: samples.png does not have the sha256")
        assert api.get("/models/tiny/3/archive").status_code == 200


# --- a ZIP --------------------------------------------------------------------------------------------------------------------


def test_a_version_goes_from_one_machine_to_another_under_its_own_name_and_number(console: Console, theirs: Path, tmp_path: Path) -> None:
    said = console.done("models", "download", "tiny/3", "--models", theirs)
    assert said == f"tiny-3.zip: tiny/3, sha256 of its manifest {digest(theirs / 'tiny/3')}\n"
    said = console.done("models", "import", "tiny-3.zip", *confirmed(theirs / "tiny/3"))
    assert said == "tiny/3 is here, and served within two seconds\n"
    assert content(tmp_path / "models/tiny/3") == content(theirs / "tiny/3")
    assert known(tmp_path) == {digest(theirs / "tiny/3")}
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", run_jobs=False)) as api:
        assert api.post("/generate", {"model": "tiny"}).headers["X-Version"] == "3"
    again = console.refused("models", "import", "tiny-3.zip", *confirmed(theirs / "tiny/3"))
    assert again.startswith("tiny version 3 is taken here: give another name with --as NAME")


def test_a_version_whose_number_is_taken_gets_the_next_one_of_the_name_that_is_given(
    console: Console, theirs: Path, tmp_path: Path
) -> None:
    words = ["models", "import", console.done("models", "download", "tiny/3", "--models", theirs).partition(":")[0]]
    shutil.copytree(theirs / "tiny/4", tmp_path / "models/tiny/4")
    for name, version in (("tiny", "tiny/5"), ("other", "other/1")):
        assert console.done(*words, "--as", name, *confirmed(theirs / "tiny/3")) == f"{version} is here, and served within two seconds\n"
        manifest = Manifest.model_validate_json((tmp_path / "models" / version / MANIFEST).read_bytes())
        assert f"{manifest.name}/{manifest.version}" == version
        assert digest(tmp_path / "models" / version) in known(tmp_path)
    assert "other version 1 is or was here already" in console.refused(*words, "--as", "other", *confirmed(theirs / "tiny/3"))
    assert "--as 'No name' is no name" in console.refused(*words, "--as", "No name")


def test_a_number_that_was_removed_or_reserved_here_is_not_taken_by_what_comes(console: Console, theirs: Path, tmp_path: Path) -> None:
    for version in ("tiny/3", "tiny/4"):
        console.done("models", "download", version, "--models", theirs)
    shutil.copytree(theirs / "tiny/3", tmp_path / "models/tiny/3")
    numbers.remove(tmp_path / "models/tiny", 3)
    assert "tiny version 3 was removed here, and its number is not used again" in console.refused("models", "import", "tiny-3.zip")
    assert versions.reserve([tmp_path / "models"], "tiny", "a-run") == 4
    assert "tiny version 4 is taken here" in console.refused("models", "import", "tiny-4.zip")


def test_what_was_removed_here_comes_again_under_a_new_number(console: Console, theirs: Path, tmp_path: Path) -> None:
    console.done("models", "download", "tiny/3", "--models", theirs)
    words = ["models", "import", "tiny-3.zip", *confirmed(theirs / "tiny/3")]
    console.done(*words)
    numbers.remove(tmp_path / "models/tiny", 3)
    for number in (4, 5):
        assert console.done(*words, "--as", "tiny").startswith(f"tiny/{number} is here")
        assert f"tiny version {number} is or was here already" in console.refused(*words, "--as", "tiny")
        numbers.remove(tmp_path / "models/tiny", number)
    assert versions.reserve([tmp_path / "models"], "tiny", f"import-{digest(theirs / 'tiny/3')}-as-3") == 6, "and it was killed"
    assert console.done(*words, "--as", "tiny").startswith("tiny/6 is here")


@pytest.mark.parametrize(("answer", "is_in"), [("yes", True), ("no", False)])
def test_the_owner_is_asked_before_anything_is_taken_in(answer: str, is_in: bool, console: Console, theirs: Path, tmp_path: Path) -> None:
    console.done("models", "download", "tiny/3", "--models", theirs)
    assert console.refused("models", "import", "tiny-3.zip").startswith("nobody is here to be asked")
    terminal = Terminal("models", "import", "tiny-3.zip")
    terminal.read_until(r"take it in as tiny/3\? \[yes/no\]")
    assert digest(theirs / "tiny/3") in terminal.text
    assert not (tmp_path / "models").exists()
    terminal.type(answer)
    assert terminal.read_to_the_end() == (0 if is_in else 1)
    assert (tmp_path / "models/tiny/3").exists() is is_in
    assert bool(known(tmp_path)) is is_in


def test_a_zip_that_is_not_what_its_manifest_says_is_refused_and_nothing_is_left(console: Console, theirs: Path, tmp_path: Path) -> None:
    files = content(theirs / "tiny/3")
    generator = files["generator.pt"]
    without = {name: data for name, data in files.items() if name != "generator.pt"}
    for number, (bad, reason) in enumerate(
        (
            ({}, "it has 0 files, 0 of them a manifest.json"),
            (without, "generator.pt is missing"),
            (files | {"generator.pt": generator[:-1]}, "generator.pt is not what its manifest says"),
            (files | {"generator.pt": generator + b"more"}, "generator.pt is not what its manifest says"),
            (files | {"generator.pt": generator[:-1] + b"?"}, "generator.pt is not what its manifest says"),
            (files | {"more.pt": b""}, "it has 'more.pt', which its manifest does not name"),
            (files | {"../../evil": b""}, "it has '../../evil', which its manifest does not name"),
            (files | {"deeper/manifest.json": b"{}"}, "2 of them a manifest.json"),
            (files | {MANIFEST: b"{}"}, "its manifest.json is none of this program's: Field required"),
        )
    ):
        path = zip_of(bad, tmp_path / f"{number}.zip")
        said = console.refused("models", "import", path, *confirmed(theirs / "tiny/3"))
        assert said.startswith(f"{path} cannot be taken in: "), said
        assert reason in said
        assert known(tmp_path) == set()
        assert versions.names([tmp_path / "models"]) == []
    cut = tmp_path / "cut.zip"
    cut.write_bytes(zip_of(files, tmp_path / "whole.zip").read_bytes()[:-50])
    assert "it is no ZIP, or a damaged one" in console.refused("models", "import", cut)
    assert "No such file" in console.refused("models", "import", tmp_path / "none.zip")
    assert not list((tmp_path / "models/.staging").iterdir())


# --- directories and stores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["path", "file", "memory"])
def test_a_version_is_pushed_and_pulled(kind: str, console: Console, theirs: Path, tmp_path: Path) -> None:
    url = {"path": "shared", "file": f"file://{tmp_path}/shared", "memory": f"memory://{tmp_path.name}"}[kind]
    push, tell = ["models", "push", "tiny/3", url, "--models", theirs], f"sha256 of its manifest {digest(theirs / 'tiny/3')}\n"
    assert console.done(*push) == f"{url}/tiny/3: tiny/3 is there, {tell}"
    assert console.done(*push) == f"{url}/tiny/3: tiny/3 was there already, {tell}"
    pull = ["models", "pull", f"{url}/tiny/3"]
    assert console.refused(*pull, "--yes").startswith("--yes alone confirms nothing")
    assert console.done(*pull, *confirmed(theirs / "tiny/3")) == "tiny/3 is here, and served within two seconds\n"
    assert content(tmp_path / "models/tiny/3") == content(theirs / "tiny/3")
    assert known(tmp_path) == {digest(theirs / "tiny/3")}
    assert "manifest.json is missing" in console.refused("models", "pull", f"{url}/tiny/4")
    system, path = fsspec.url_to_fs(f"{url}/tiny/3/generator.pt")
    with system.open(path, "wb") as file:
        file.write(b"something else")
    assert "generator.pt is not what its manifest says" in console.refused(*pull, "--as", "other", *confirmed(theirs / "tiny/3"))
    with system.open(path.replace("generator.pt", MANIFEST), "wb") as file:
        file.write(b"{}")
    assert console.refused(*push).endswith("holds another tiny/3: push it elsewhere, or remove that")


def test_what_was_pushed_to_a_directory_is_a_repository(console: Console, theirs: Path, tmp_path: Path) -> None:
    console.done("models", "push", "tiny", "shared", "--models", theirs)
    with serving(Settings(models=(tmp_path / "shared",), state=tmp_path / "theirs" / "state", run_jobs=False)) as api:
        assert api.post("/generate", {"model": "tiny"}).headers["X-Version"] == "4"


def test_what_was_removed_from_a_directory_is_not_pushed_there_again(console: Console, theirs: Path, tmp_path: Path) -> None:
    push = ["models", "push", "tiny/3", "shared", "--models", theirs]
    console.done(*push)
    numbers.remove(tmp_path / "shared/tiny", 3)
    assert console.refused(*push).startswith("tiny/3 was removed from shared/tiny/3, and its number is not used again")
    assert not (tmp_path / "shared/tiny/3").exists()


def test_s3_is_reached_by_obstore_where_it_is_installed_and_other_protocols_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    place = stores.reach("s3://bucket/models/") / "tiny" / "3"
    assert (type(place.system).__module__, place.path) == ("obstore.fsspec", "bucket/models/tiny/3")
    assert place.url == "s3://bucket/models/tiny/3"
    for url, reason in (
        ("s3://", "names no bucket: write s3://bucket/folder"),
        ("https://host/models", "a directory and s3:// are allowed"),
        ("simplecache::s3://bucket", "a directory and s3:// are allowed"),
    ):
        with pytest.raises(UserError, match=reason):
            stores.reach(url)
    monkeypatch.setitem(sys.modules, "obstore.fsspec", None)
    with pytest.raises(UserError, match=r"s3:// needs the extra s3, which is not installed: pip install 'ganserve\[s3\]'"):
        stores.reach("s3://bucket/models")


# --- backup -------------------------------------------------------------------------------------------------------------------


def test_a_backup_is_made_and_restored_and_what_it_holds_is_served(console: Console, theirs: Path, root: Path) -> None:
    said = console("backup", "b.tar", "--models", theirs, "--models", root / "models", "--state", theirs.parent / "state")
    assert said.out.startswith("b.tar: 2 versions of 1 models, 0 jobs and runs, 0 data sets, ")
    assert said.err == f"{root / 'models'} is only read, and left out: keep a copy of where it is from\n"
    assert "b.tar is there already" in console.refused("backup", "b.tar", "--models", theirs)
    assert console.done("restore", "b.tar") == "b.tar is restored: models in models, state in state\n"
    assert "models is there already, and is not written over" in console.refused("restore", "b.tar")
    assert console.refused("restore", "none.tar", "--models", "a", "--state", "b") == "none.tar: No such file or directory"
    with serving(Settings(models=(Path("models"),), state=Path("state"), run_jobs=False)) as api:
        assert api.post("/generate", {"model": "tiny"}).headers["X-Version"] == "4"
        assert api.get("/models").json()["broken"] == []
