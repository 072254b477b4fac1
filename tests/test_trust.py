"""What may be loaded: what was published or confirmed here, and nothing that was put there."""

import json
import shutil
from pathlib import Path

import pytest
import tiny_versions
from api_client import serving
from consoles import Console, Terminal
from servers import ROOT

from app.settings import Settings
from training.contract import Manifest
from training.files import digests

pytest_plugins = ["console_fixtures"]


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A version that somebody has made elsewhere and copied into `models`."""
    tiny_versions.publish(tmp_path / "elsewhere" / "models", "tiny", tiny_versions.single())
    return Path(shutil.copytree(tmp_path / "elsewhere" / "models", tmp_path / "models")) / "tiny" / "1"


def digest(folder: Path) -> str:
    return digests.digest_of((folder / "manifest.json").read_bytes())


def test_the_models_that_come_with_the_program_are_those_that_it_trusts() -> None:
    folders = {f"{path.parent.parent.name}/{path.parent.name}": digest(path.parent) for path in ROOT.glob("models/*/*/manifest.json")}
    assert {version: digest for digest, version in digests.SHIPPED.items()} == folders
    assert digests.known(ROOT / "nowhere") == set(folders.values())


def test_a_version_that_was_put_there_is_broken_until_it_is_confirmed_and_again_when_that_is_taken_back(
    foreign: Path, tmp_path: Path
) -> None:
    settings = Settings(models=(tmp_path / "models",), state=tmp_path / "state", run_jobs=False)
    with serving(settings) as api:
        listing = api.get("/models").json()
        assert listing["models"] == []
        [broken] = listing["broken"]
        assert (broken["name"], broken["version"]) == ("tiny", 1)
        assert f"sha256 {digest(foreign)}) was neither published nor confirmed here" in broken["reason"]
        assert broken["reason"].endswith("`ganserve models trust tiny/1`")
        assert api.post("/generate", {"model": "tiny"}).status_code == 404
        digests.remember(settings.digests, digest(foreign), "tiny/1", "confirmed")
        api.refresh()
        assert api.post("/generate", {"model": "tiny"}).status_code == 200
        digests.forget(settings.digests, digest(foreign))
        api.refresh()
        assert api.post("/generate", {"model": "tiny"}).status_code == 404


def test_a_digest_that_lies_beside_the_model_proves_nothing(foreign: Path, tmp_path: Path) -> None:
    for folder in (foreign, foreign.parent, tmp_path / "models"):
        digests.remember(folder / digests.FOLDER, digest(foreign), "tiny/1", "published")
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", run_jobs=False)) as api:
        assert [broken["name"] for broken in api.get("/models").json()["broken"]] == ["tiny"]


def test_a_manifest_that_was_changed_is_another_one(foreign: Path, tmp_path: Path) -> None:
    digests.remember(tmp_path / "state/digests", digest(foreign), "tiny/1", "confirmed")
    manifest = foreign / "manifest.json"
    manifest.write_text(manifest.read_text().replace("made for tests", "made for others"))
    assert Manifest.model_validate_json(manifest.read_bytes()).name == "tiny"
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", run_jobs=False)) as api:
        assert [broken["name"] for broken in api.get("/models").json()["broken"]] == ["tiny"]


def test_a_script_confirms_by_the_digest_that_it_was_told(console: Console, foreign: Path, tmp_path: Path) -> None:
    words = ["models", "trust", "tiny/1"]
    assert console.refused(*words).startswith("nobody is here to be asked: give --yes and --digest")
    assert console.refused(*words, "--yes").startswith("--yes alone confirms nothing: give --digest too")
    wrong = "0" * 64
    assert console.refused(*words, "--yes", "--digest", wrong).startswith(f"--digest is {wrong}, and that of tiny/1 is {digest(foreign)}")
    assert not (tmp_path / "state").exists()
    assert console.done(*words, "--yes", "--digest", digest(foreign)) == "tiny/1 is trusted, and served within two seconds\n"
    told = json.loads((tmp_path / "state/digests" / digest(foreign)).read_text())
    assert (told["version"], told["how"]) == ("tiny/1", "confirmed")
    assert console.done(*words) == "tiny/1 is known here already\n"
    assert "there is no model 'tin'; there are: tiny" in console.refused("models", "trust", "tin/1")


def test_a_damaged_version_cannot_be_confirmed(console: Console, foreign: Path) -> None:
    words = ["models", "trust", "tiny/1", "--yes", "--digest", digest(foreign)]
    path = foreign / "generator.pt"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert "is damaged: generator.pt does not have the sha256" in console.refused(*words)


@pytest.mark.parametrize(("answer", "code"), [("yes", 0), ("y", 1)])
def test_the_owner_is_shown_the_digest_and_asked(answer: str, code: int, foreign: Path, tmp_path: Path) -> None:
    terminal = Terminal("models", "trust", "tiny/1", "--models", str(tmp_path / "models"), "--state", str(tmp_path / "state"))
    terminal.read_until(r"from, and load it from now on\? \[yes/no\]")
    assert f"sha256 of its manifest: {digest(foreign)}" in terminal.text
    assert f"generator.pt, {(foreign / 'generator.pt').stat().st_size:,} bytes, sha256 " in terminal.text
    terminal.type(answer)
    assert terminal.read_to_the_end() == code
    assert (digest(foreign) in digests.known(tmp_path / "state/digests")) is (code == 0)


def test_what_a_manifest_says_cannot_write_over_its_digest(foreign: Path, tmp_path: Path) -> None:
    path = foreign / "manifest.json"
    evil = "\x1b[8m\r\nsha256 of its manifest: " + "0" * 64
    path.write_text(json.dumps(json.loads(path.read_text()) | {"architecture": evil, "created_at": "\x1b[1A" * 1000}))
    terminal = Terminal("models", "trust", "tiny/1", "--models", str(tmp_path / "models"), "--state", str(tmp_path / "state"))
    terminal.read_until(r"\[yes/no\]")
    lines = terminal.text.splitlines()
    assert lines[0].startswith(f"tiny/1: {ascii(evil)[:80]} on ")
    assert lines[0].endswith(", made " + ascii("\x1b[1A" * 1000)[:80])
    assert lines[-2] == f"sha256 of its manifest: {digest(foreign)}"
    assert [line for line in lines if line.startswith("sha256")] == [lines[-2]]
    terminal.type("no")
    assert terminal.read_to_the_end() == 1
