"""What /docs and the greeting propose to the models that are here."""

from pathlib import Path

import pytest
from api_client import Api, picture, serving
from tiny_versions import enlarging, label_judging, labelled, normalising, pair_judging, publish

from app import examples
from app.settings import Settings

pytest_plugins = ["api_fixtures"]
BODIES = {
    "/generate": "GenerateRequest",
    "/interpolate": "InterpolateRequest",
    "/discriminate": "DiscriminateRequest",
    "/transform": "TransformRequest",
}


def proposed(api: Api, path: str) -> dict[str, object]:
    example: dict[str, object] = api.get("/openapi.json").json()["components"]["schemas"][BODIES[path]]["example"]
    return example


@pytest.mark.parametrize("path", BODIES)
def test_every_example_runs_as_it_stands_where_a_model_can_do_it(kinds: Api, path: str) -> None:
    response = kinds.post(path, proposed(kinds, path))
    assert response.status_code == 200, response.text


def test_models_of_latents_alone_are_proposed_before_those_of_classes(kinds: Api, api: Api) -> None:
    assert proposed(kinds, "/generate")["model"] == "staged"
    assert proposed(kinds, "/discriminate") | {"images": []} == {"model": "classes", "labels": [0], "images": []}
    assert proposed(api, "/discriminate")["model"] == "colour"


@pytest.mark.parametrize("module", [enlarging(), normalising(size=8), normalising()])
def test_a_picture_is_proposed_that_the_model_takes(tmp_path: Path, module: object) -> None:
    publish(tmp_path / "models", "only", module)  # type: ignore[arg-type]
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", device="cpu", run_jobs=False)) as api:
        assert picture(api.post("/transform", proposed(api, "/transform"))).std() > 1
        assert examples.sampling(api.service.store) is None
        assert proposed(api, "/generate")["model"] == "digits", "as it stands in the schema"


def test_of_classes_a_label_is_proposed(tmp_path: Path) -> None:
    publish(tmp_path / "models", "classes", labelled(), discriminator=label_judging())
    publish(tmp_path / "models", "pairs", normalising(size=8), discriminator=pair_judging(size=8))
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", device="cpu", run_jobs=False)) as api:
        for path in ("/generate", "/interpolate", "/discriminate"):
            assert api.post(path, proposed(api, path)).status_code == 200
        assert examples.sampling(api.service.store) == {"model": "classes", "labels": [0]}
