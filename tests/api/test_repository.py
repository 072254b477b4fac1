"""What is found in model repositories, without a model file being opened."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_versions import trusted_by

from app.repository import Broken, Inventory, scan
from training.contract import Manifest
from training.files import versions

MakeVersion = Callable[..., Manifest]


def look(*repositories: Path, before: Inventory | None = None) -> Inventory:
    return scan(repositories, before or Inventory(), trusted_by(repositories[0]))


def numbers(inventory: Inventory) -> dict[str, list[int]]:
    return {name: list(entries) for name, entries in inventory.entries.items()}


def reasons(inventory: Inventory) -> dict[tuple[str, int], str]:
    return {(entry.name, entry.number): entry.reason for found in inventory.entries.values() for entry in found.values()}


def test_versions_are_found_in_the_order_of_their_numbers(make_version: MakeVersion, repository: Path) -> None:
    for number in (10, 9, 1):
        make_version(repository, "digits", version=number)
    manifest = make_version(repository, "ants")
    inventory = look(repository)
    assert list(inventory.entries) == ["ants", "digits"]
    assert numbers(inventory) == {"ants": [1], "digits": [1, 9, 10]}
    assert inventory.entries["ants"][1].manifest == manifest
    assert inventory.obstacles == ()


def test_what_is_no_version_is_passed_over(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "digits")
    (repository / ".staging/half").mkdir(parents=True)
    (repository / "README").write_text("foreign")
    (repository / "Not A Name/1").mkdir(parents=True)
    (repository / "empty").mkdir()
    for foreign in ("01", "latest", "-1", "1.5", "٣"):
        (repository / "digits" / foreign).mkdir()
    (repository / "digits/2").write_text("a file")
    inventory = look(repository)
    assert numbers(inventory) == {"digits": [1]}
    assert inventory.obstacles == ()


def test_a_repository_that_is_not_there_yet_is_empty(tmp_path: Path) -> None:
    assert look(tmp_path / "none").entries == {}


def test_nothing_changed_gives_the_same_inventory_and_a_change_keeps_all_other_entries(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "digits")
    first = look(repository)
    assert look(repository, before=first) is first
    make_version(repository, "digits", version=2)
    second = look(repository, before=first)
    assert second is not first
    assert second.entries["digits"][1] is first.entries["digits"][1]
    assert second.holds(first.entries["digits"][1])
    (repository / "digits/1/generator.pt").write_bytes(b"changed")
    third = look(repository, before=second)
    assert third.entries["digits"][2] is second.entries["digits"][2]
    assert not third.holds(second.entries["digits"][1])


def test_a_removed_version_is_gone_and_a_model_without_versions_too(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "digits")
    make_version(repository, "digits", version=2)
    before = look(repository)
    shutil.rmtree(repository / "digits/2")
    assert numbers(look(repository, before=before)) == {"digits": [1]}
    shutil.rmtree(repository / "digits/1")
    assert numbers(look(repository, before=before)) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "manifest.json is missing"),
        (b"", "manifest.json: Invalid JSON"),
        (b"\xff\xfe", "manifest.json: Invalid JSON"),
        (b"{}", "Field required (and "),
        (b"[]", "manifest.json: Input should be an object"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named_with_the_reason(
    content: bytes | None, words: str, make_version: MakeVersion, repository: Path
) -> None:
    make_version(repository, "digits")
    path = repository / "digits/1/manifest.json"
    path.unlink() if content is None else path.write_bytes(content)
    inventory = look(repository)
    assert inventory.entries["digits"][1].manifest is None
    assert words in reasons(inventory)["digits", 1]
    assert "\n" not in reasons(inventory)["digits", 1]


def test_a_manifest_of_a_later_schema_or_with_an_unknown_field_is_named(make_version: MakeVersion, repository: Path) -> None:
    for number, change in ((1, {"schema_version": 2}), (2, {"colour": "red"})):
        make_version(repository, "digits", version=number)
        path = repository / f"digits/{number}/manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    found = reasons(look(repository))
    assert found["digits", 1].startswith("manifest.json: schema_version: ")
    assert found["digits", 2].startswith("manifest.json: colour: ")


def test_a_version_copied_under_another_name_or_number_is_named(make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "digits")
    shutil.copytree(repository / "digits/1", repository / "other/1")
    shutil.copytree(repository / "digits/1", repository / "digits/7")
    found = reasons(look(repository))
    assert found["other", 1] == "manifest.json is of 'digits' version 1; a version cannot be copied under another name"
    assert "of 'digits' version 1" in found["digits", 7]
    assert found["digits", 1] == ""


def test_repositories_are_merged_and_of_two_equal_numbers_the_first_ones_is_taken(
    make_version: MakeVersion, repository: Path, tmp_path: Path
) -> None:
    demo = tmp_path / "demo"
    make_version(repository, "digits", version=2)
    make_version(repository, "digits", version=3, seed=1)
    make_version(demo, "digits", version=1)
    make_version(demo, "digits", version=3, seed=2)
    make_version(demo, "fashion")
    inventory = look(repository, demo)
    assert numbers(inventory) == {"digits": [1, 2, 3], "fashion": [1]}
    assert inventory.entries["digits"][3].folder == repository / "digits/3"
    assert inventory.obstacles == (Broken("digits", 3, "two repositories hold this version; the second one's is left out"),)


def test_aliases_of_the_first_repository_win(make_version: MakeVersion, repository: Path, tmp_path: Path) -> None:
    demo = tmp_path / "demo"
    make_version(demo, "digits", version=1)
    make_version(repository, "digits", version=2)
    versions.write_alias([demo], "digits", "production", 1)
    versions.write_alias([demo], "digits", "first", 1)
    versions.write_alias([repository, demo], "digits", "production", 2)
    assert look(repository, demo).aliases == {"digits": {"production": 2, "previous": 1, "first": 1}}


@pytest.mark.parametrize("content", ["", "[]", '{"production": "1"}', '{"production": true}', '{"7": 1}', "\ud800"])
def test_aliases_that_cannot_be_read_stay_as_they_were_and_are_named(content: str, make_version: MakeVersion, repository: Path) -> None:
    make_version(repository, "digits")
    versions.write_alias([repository], "digits", "production", 1)
    before = look(repository)
    (repository / "digits/aliases.json").write_text(content, errors="surrogatepass")
    after = look(repository, before=before)
    assert after.aliases == {"digits": {"production": 1}}
    assert [(broken.name, broken.version) for broken in after.obstacles] == [("digits", None)]
    assert "aliases.json is no object" in after.obstacles[0].reason
