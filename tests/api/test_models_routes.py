"""GET /models and what lies below: versions, aliases, samples, and what is broken."""

import hashlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from api_client import Api, picture, pointers, refusal, serving, singles

from app.cards import model_card
from app.settings import Settings
from ganserve import cli
from ganserve.training import TrainFlags
from training import catalog, datasets
from training.commands import train_command
from training.contract import Manifest, OptimizerConfig, TrainConfig
from training.datasets import About, Batch

pytest_plugins = ["api_fixtures"]
MakeVersion = Callable[..., Manifest]


@pytest.fixture
def own(repository: Path, tmp_path: Path, make_version: MakeVersion) -> Iterator[Api]:
    """A server of a repository that the test may change: `tiny` in versions 1 and 2."""
    for version in (1, 2):
        make_version(repository, "tiny", version=version, seed=version)
    with serving(Settings(models=(repository,), state=tmp_path / "state", run_jobs=False)) as api:
        yield api


def answering(api: Api, version: object = None) -> int:
    body = {"model": "tiny", "num_images": 1, "seed": 0} | ({} if version is None else {"version": version})
    response = api.post("/generate", body)
    assert response.status_code == 200, response.text
    return int(response.headers["X-Version"])


# --- listing ------------------------------------------------------------------------------------------------------------------


def test_every_model_is_listed_with_what_a_client_must_know(api: Api) -> None:
    listing = api.get("/models").json()
    assert [model["name"] for model in listing["models"]] == ["blind", "colour", "critic", "digits", "labelled"]
    assert listing["broken"] == []
    by_name = {model["name"]: model for model in listing["models"]}
    digits = by_name["digits"]
    assert (digits["version"], digits["versions"], digits["aliases"]) == (1, [1], {})
    assert (digits["architecture"], digits["dataset"], digits["has_discriminator"]) == ("mlp", "mnist", True)
    assert [(spec["name"], spec["kind"], spec["shape"]) for spec in digits["inputs"]] == [("latent", "latent", [128])]
    assert digits["output"]["shape"] == [1, 28, 28]
    assert by_name["labelled"]["inputs"][1]["classes"] == ["cat", "dog", "fox"]
    assert not by_name["blind"]["has_discriminator"]
    for model in listing["models"]:
        assert all(sizes[-1] == 64 for sizes in model["batch_sizes"].values())
        assert ("discriminator" in model["batch_sizes"]) is model["has_discriminator"]


def test_a_model_shows_all_its_versions_oldest_first(own: Api) -> None:
    card = own.get("/models/tiny").json()
    assert (card["version"], card["versions"]) == (2, [1, 2])
    assert [figures["version"] for figures in card["history"]] == [1, 2]
    assert own.get("/models").json()["models"][0].items() <= card.items()


def test_a_version_shows_its_manifest_and_the_command_that_trains_it_again(api: Api) -> None:
    card = api.get("/models/digits/1").json()
    manifest = Manifest.model_validate(card["manifest"], strict=False)
    assert (manifest.name, manifest.version, manifest.dataset.name) == ("digits", 1, "mnist")
    assert card["command"] == train_command(manifest.config)
    assert card["command"].startswith("ganserve train --name digits --architecture mlp ")


def test_a_version_has_a_card_that_people_read(api: Api) -> None:
    for model in ("blind", "colour", "critic", "digits", "labelled"):
        manifest = api.service.store.manifest(model)
        answer = api.get(f"/models/{model}/{manifest.version}/card")
        assert answer.headers["content-type"] == "text/markdown; charset=utf-8"
        assert answer.text.startswith(f"# {model}, version {manifest.version}\n")
        assert f"$ {train_command(manifest.config)}\n" in answer.text
        files = [file for spec in (manifest.generator, *manifest.parts.values()) for file in spec.files.values()] + [manifest.samples]
        assert all(f"| {file.size_bytes:,} | {file.sha256} |" in answer.text for file in files)
        assert all(f"| {name.replace('_', chr(92) + '_')} | " in answer.text for name in manifest.metrics)
        assert json.loads(answer.text.split("```json\n")[1].split("```")[0]) == manifest.config.model_dump(mode="json")
        assert api.get(re.search(r"\]\((/.*)\)", answer.text)[1]).status_code == 200  # type: ignore[index]


def test_what_somebody_wrote_of_his_data_is_no_markup_on_a_card(api: Api) -> None:
    manifest = api.service.store.manifest("digits")
    data = manifest.dataset.model_copy(update={"licence": "mine | *all*\n# <b>[x](y)</b>", "source": "`here`"})
    lines = model_card(manifest.model_copy(update={"dataset": data})).splitlines()
    assert r"| licence | mine \| \*all\* \# \<b\>\[x\](y)\</b\> |" in lines
    assert r"| from | \`here\` |" in lines


def test_unknown_names_list_the_known_ones(own: Api) -> None:
    problem = refusal(own.get("/models/tin"), 404)
    assert problem["type"] == "/problems/unknown-model"
    assert "'tin'; there are: tiny; did you mean 'tiny'?" in problem["detail"]
    for path in ("/models/tiny/3", "/models/tiny/best", "/models/tiny/-1", "/models/tiny/1.0", "/models/tiny/%C2%B2"):
        refusal(own.get(path), 404)
    assert "versions: 1, 2; aliases: none" in refusal(own.get("/models/tiny/3"), 404)["detail"]
    assert refusal(own.get("/models/none/1"), 404)["type"] == "/problems/unknown-model"


@pytest.mark.parametrize("name", ["..", "%2e%2e", "tiny%00", ".staging", "%2Fetc", "a" * 63, "%F0%9F%98%80"])
def test_a_name_is_never_a_path(own: Api, name: str) -> None:
    for path in (f"/models/{name}", f"/models/{name}/1", f"/models/tiny/{name}", f"/models/{name}/1/samples.png"):
        if name not in ("..", "%2e%2e"):  # httpx resolves those itself
            refusal(own.get(path), 404)


def test_a_name_or_number_of_thousands_of_characters_is_no_bug(own: Api) -> None:
    for long in ("9" * 5000, "a" * 5000):
        assert pointers(refusal(own.get(f"/models/tiny/{long}"), 422)) == ["/version"]
        assert pointers(refusal(own.get(f"/models/tiny/{long}/samples.png"), 422)) == ["/version"]
        assert pointers(refusal(own.get(f"/models/{long}"), 422)) == ["/name"]


# --- aliases ------------------------------------------------------------------------------------------------------------------


def alias(repository: Path, name: str, version: int) -> None:
    assert cli.main(["models", "alias", "tiny", name, str(version), "--models", str(repository)]) == 0


def test_production_answers_where_no_version_is_named_and_any_alias_by_its_name(own: Api, repository: Path) -> None:
    assert answering(own) == 2
    alias(repository, "production", 1)
    alias(repository, "best", 2)
    own.refresh()
    assert answering(own) == 1
    assert (answering(own, "best"), answering(own, "production"), answering(own, 2), answering(own, "2")) == (2, 1, 2, 2)
    card = own.get("/models/tiny").json()
    assert (card["version"], card["aliases"]) == (1, {"production": 1, "previous": 2, "best": 2})
    assert own.get("/models/tiny/best").json()["manifest"]["version"] == 2
    alias(repository, "production", 2)
    own.refresh()
    assert answering(own) == 2


def test_an_alias_has_the_pixels_of_its_version(own: Api, repository: Path) -> None:
    alias(repository, "best", 1)
    own.refresh()
    body = {"model": "tiny", "num_images": 3, "seed": 4}
    first, second, best = (picture(own.post("/generate", body | {"version": version})) for version in (1, 2, "best"))
    assert np.array_equal(best, first)
    assert not np.array_equal(second, first)


# --- samples ------------------------------------------------------------------------------------------------------------------


def test_samples_are_the_png_of_the_version(api: Api, own: Api, repository: Path) -> None:
    response = api.get("/models/digits/1/samples.png")
    assert response.headers["content-type"] == "image/png"
    assert picture(response).shape[:2] == (242, 242)
    assert own.get("/models/tiny/2/samples.png").content == (repository / "tiny" / "2" / "samples.png").read_bytes()
    for path in ("/models/tiny/3/samples.png", "/models/none/1/samples.png", "/models/tiny/1/samples.jpg", "/models/tiny/1/generator.pt"):
        refusal(own.get(path), 404)


def test_samples_that_were_damaged_after_the_start_are_not_sent(own: Api, repository: Path) -> None:
    (repository / "tiny" / "1" / "samples.png").write_bytes(b"something else")
    assert "damaged or gone" in refusal(own.get("/models/tiny/1/samples.png"), 404)["detail"]


@pytest.mark.parametrize("file", ["generator.pt", "stages.pt", "level-0.pt", "samples.png"])
def test_every_file_that_the_manifest_names_can_be_fetched(kinds: Api, file: str) -> None:
    path = f"/models/staged/1/files/{file}"
    response = kinds.get(path)
    assert response.status_code == 200
    manifest = Manifest.model_validate(kinds.get("/models/staged/1").json()["manifest"], strict=False)
    modules = [manifest.generator, *manifest.parts.values()]
    specs = {spec.file: spec for spec in (*(module.files["torchscript"] for module in modules), manifest.samples)}
    assert hashlib.sha256(response.content).hexdigest() == specs[file].sha256
    assert response.headers["etag"] == f'"{specs[file].sha256}"'
    head = kinds.send(kinds.build("HEAD", path))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-length"] == str(len(response.content))
    part = kinds.send(kinds.build("GET", path, headers={"range": "bytes=0-3"}))
    assert (part.status_code, part.content) == (206, response.content[:4])


def test_no_other_file_can_be_fetched(own: Api, repository: Path) -> None:
    (repository / "tiny" / "1" / "notes.txt").write_text("private")
    for name in ("notes.txt", "manifest.json", "%2e%2e", "..%2f2%2fgenerator.pt", "/etc/passwd", "generator.pt%00", "a" * 100):
        refusal(own.get(f"/models/tiny/1/files/{name}"), 404)
    problem = refusal(own.get("/models/tiny/1/files/notes.txt"), 404)
    assert problem["detail"] == ("tiny version 1 has no file 'notes.txt'; there are: generator.pt, discriminator.pt, samples.png")
    assert pointers(refusal(own.get(f"/models/tiny/1/files/{'a' * 101}"), 422)) == ["/file"]
    refusal(own.get("/models/tiny/9/files/generator.pt"), 404)


def test_a_file_that_was_damaged_after_the_start_is_not_sent(own: Api, repository: Path) -> None:
    (repository / "tiny" / "1" / "generator.pt").write_bytes(b"something else")
    assert "generator.pt of tiny version 1 is damaged or gone" in refusal(own.get("/models/tiny/1/files/generator.pt"), 404)["detail"]


def test_cards_tell_of_parts_conditions_and_pictures(kinds: Api) -> None:
    cards = {card["name"]: card for card in kinds.get("/models").json()["models"]}
    assert [name for name, card in cards.items() if card["transforms"]] == ["enlarge", "fixed", "pairs", "whole"]
    assert [(part["name"], part["served"]) for part in cards["staged"]["parts"]] == [("stages", True), ("level-0", False)]
    assert [spec["shape"] for spec in cards["staged"]["parts"][1]["inputs"]] == [[1, -1, -1]]
    assert cards["staged"]["batch_sizes"].keys() == {"generator", "stages"}
    assert [[spec["kind"] for spec in cards[name]["conditions"]] for name in ("pairs", "classes", "fixed")] == [["image"], ["label"], []]
    assert cards["enlarge"]["batch_sizes"] == {"generator": [1]}
    [image] = cards["enlarge"]["inputs"]
    assert (image["shape"], image["scale"], image["halo"], image["size_multiple"]) == ([3, -1, -1], 2, 2, 1)


# --- broken versions ----------------------------------------------------------------------------------------------------------


def test_a_broken_version_is_named_with_its_reason_and_the_one_before_answers(
    repository: Path, tmp_path: Path, make_version: MakeVersion
) -> None:
    for version in (1, 2):
        make_version(repository, "tiny", version=version)
    make_version(repository, "gone")
    for path in (repository / "tiny" / "2" / "generator.pt", repository / "gone" / "1" / "generator.pt"):
        path.write_bytes(path.read_bytes()[:-1] + b"?")
    with serving(Settings(models=(repository,), state=tmp_path / "state", run_jobs=False)) as api:
        listing = api.get("/models").json()
        assert [(broken["name"], broken["version"]) for broken in listing["broken"]] == [("gone", 1), ("tiny", 2)]
        assert all("generator.pt does not have the sha256" in broken["reason"] for broken in listing["broken"])
        assert [(model["name"], model["version"], model["versions"]) for model in listing["models"]] == [("tiny", 1, [1])]
        assert answering(api) == 1
        problem = refusal(api.post("/generate", {"model": "tiny", "version": 2}), 404)
        assert "version 2 of model 'tiny' is broken: generator.pt does not have the sha256" in problem["detail"]
        refusal(api.get("/models/tiny/2"), 404)
        assert "is broken" in refusal(api.get("/models/gone"), 404)["detail"]
        assert api.get("/readyz").json()["models"] == ["tiny"]


def test_a_version_published_meanwhile_answers_and_a_broken_one_does_not(own: Api, repository: Path, make_version: MakeVersion) -> None:
    before = singles(own.post("/generate", {"model": "tiny", "seed": 1}, headers={"accept": "application/x-npy"}))
    make_version(repository, "tiny", version=3, seed=3)
    make_version(repository, "newcomer")
    own.refresh()
    assert answering(own) == 3
    assert own.post("/generate", {"model": "newcomer"}).status_code == 200
    (repository / "tiny" / "4").mkdir()
    own.refresh()
    assert answering(own) == 3
    assert own.get("/models").json()["broken"] == [{"name": "tiny", "version": 4, "reason": "manifest.json is missing"}]
    body = {"model": "tiny", "seed": 1, "version": 2}
    assert np.array_equal(singles(own.post("/generate", body, headers={"accept": "application/x-npy"})), before)


def test_a_server_without_models_says_so(tmp_path: Path) -> None:
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", device="cpu", run_jobs=False)) as api:
        assert api.get("/models").json() == {"models": [], "broken": []}
        assert api.get("/readyz").json() == {"status": "ready", "device": "cpu", "models": [], "loading": []}
        assert "there are: none yet" in refusal(api.post("/generate", {"model": "digits"}), 404)["detail"]


# --- the command on a manifest's card -----------------------------------------------------------------------------------------


def parsed(command: str) -> TrainConfig:
    """The config that the console program makes of a command line."""
    program, *words = shlex.split(command)
    assert program == "ganserve"
    _, bound, _ = cli.app.parse_args(words, exit_on_error=False, print_error=False)
    flags = bound.arguments.get("flags", TrainFlags())
    assert isinstance(flags, TrainFlags)
    return flags.config()


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Data sets with a small one under the name of the demo model's."""
    images = np.random.default_rng(0).integers(0, 256, (160, 1, 28, 28), dtype=np.uint8)
    datasets.write("mnist", tmp_path / "datasets", About((1, 28, 28), "a test", "CC0"), [Batch(images)])
    return tmp_path / "datasets"


def test_the_command_of_a_demo_model_gives_its_config_again(api: Api, mnist: Path) -> None:
    card = api.get("/models/digits/1").json()
    config = TrainConfig.model_validate(card["manifest"]["config"])
    resolved = catalog.resolve(parsed(card["command"]), mnist, ())
    assert resolved.dataset_sha256 == datasets.card("mnist", mnist).content_sha256
    assert resolved.model_copy(update={"dataset_sha256": None}) == config, "it was trained before runs were bound to a content"


@pytest.mark.parametrize(
    "config",
    [
        TrainConfig(),
        TrainConfig(architecture="mlp", options={"generator_widths": [8, 16], "dropout": 0.25}, total_images=10**6),
        TrainConfig(name="a.b-c_d", loss="minimax", loss_options={"label_smoothing": 0.1}, seed=2**32 - 1, hold_out=0.5),
        TrainConfig(betas=(0.0, 0.9), learning_rate=1e-5, critic_steps=5, ema_halflife_images=0, batch_size=2),
        TrainConfig(generator=OptimizerConfig(learning_rate=1e-4), discriminator=OptimizerConfig(betas=(0.1, 0.2))),
        TrainConfig(generator=OptimizerConfig(learning_rate=2e-4, betas=(0.5, 0.999)), betas=(0.5, 0.9)),
    ],
)
def test_the_command_of_any_config_gives_it_again(config: TrainConfig, tmp_path: Path) -> None:
    resolved = catalog.resolve(config, tmp_path, ())
    assert catalog.resolve(parsed(train_command(resolved)), tmp_path, ()) == resolved


def test_the_command_of_a_fine_tuned_model_gives_its_config_again(api: Api, mnist: Path, root: Path) -> None:
    models = (root / "models",)
    resolved = catalog.resolve(TrainConfig(initial_model="digits", dataset="mnist"), mnist, models)
    assert (resolved.initial_model, resolved.architecture) == ("digits/1", "mlp")
    assert catalog.resolve(parsed(train_command(resolved)), mnist, models) == resolved
