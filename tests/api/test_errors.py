"""Every refusal has one form, and nothing can make it fail."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import httpx
import hypothesis
import pytest
from api_client import Api, pointers, refusal, serving
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, ValidationError

from app import errors
from app.errors import FieldError, Invalid, NotFound, Problem, did_you_mean, pointer_of, problem_response, show
from app.main import create_app
from app.settings import Settings


@pytest.fixture(scope="module")
def broken_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The whole application with one more route, which has a bug."""
    folder = tmp_path_factory.mktemp("errors")
    settings = Settings(models=(folder / "models",), state=folder / "state", run_jobs=False)
    app = create_app(settings)

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("a secret of the inside")

    with serving(settings, app=app) as api:
        yield api


# --- values in messages -------------------------------------------------------------------------------------------------------


def test_pointers_are_escaped_as_rfc_6901_says() -> None:
    assert pointer_of([]) == ""
    assert pointer_of(["anchors", 0, "seed"]) == "/anchors/0/seed"
    assert pointer_of(["a/b", "m~n", "~1", ""]) == "/a~1b/m~0n/~01/"
    assert pointer_of(["body"]) == "/body"


def test_a_shown_value_is_printable_ascii_and_cut() -> None:
    assert show("digits") == "'digits'"
    assert show("ü\u202e\n\x00\ud800") == r"'\xfc\u202e\n\x00\ud800'"
    assert show("x" * 200) == "'" + "x" * 76 + "..."
    assert len(show("x" * 78)) == 80
    assert len(show(list(range(1000)), limit=20)) == 20
    assert show(None) == "None"


@hypothesis.settings(max_examples=50)
@given(st.text())
def test_any_text_can_be_shown(text: str) -> None:
    shown = show(text)
    assert len(shown) <= 80
    assert shown.isascii()
    assert shown.isprintable()


def test_the_nearest_word_is_suggested_and_nothing_where_none_is_near() -> None:
    allowed = ["num_images", "seed", "columns"]
    assert did_you_mean("num_image", allowed) == "; did you mean 'num_images'?"
    assert did_you_mean("colums", allowed) == "; did you mean 'columns'?"
    assert did_you_mean("temperature", allowed) == ""
    assert did_you_mean("seed", []) == ""


def test_an_answer_can_be_made_of_any_text() -> None:
    problem = Invalid("half a \ud800 pair", errors=(FieldError(pointer="/é", message="\x00"),), headers={"Retry-After": "3"})
    response = problem_response(problem, "/a\u2028b")
    document = json.loads(bytes(response.body).decode("ascii"))
    assert document["errors"] == [{"pointer": "/é", "message": "\x00"}]
    assert document["instance"] == "/a\u2028b"
    assert response.headers["retry-after"] == "3"
    assert response.media_type == "application/problem+json"


def test_every_problem_has_a_status_a_kind_and_a_title_of_its_own() -> None:
    found, kinds = [Problem], [Problem]
    while found:
        found = [kind for parent in found for kind in parent.__subclasses__()]
        kinds += found
    assert len({kind.kind for kind in kinds}) == len(kinds)
    assert len({kind.title for kind in kinds}) == len(kinds)
    drawn = errors.__doc__ or ""
    for kind in kinds:
        assert kind.__name__ in drawn
        assert 400 <= kind.status < 600
    assert issubclass(errors.UnknownModel, NotFound)


# --- what pydantic says becomes pointers --------------------------------------------------------------------------------------


class _Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    seed: int | None = None


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    version: int | str = 1
    anchors: list[_Inner] = []
    inner: _Inner = _Inner()
    number: float = 0.0
    wanted: int


def refused(body: dict[str, object]) -> Invalid:
    with pytest.raises(ValidationError) as error:
        _Body.model_validate(body)
    return errors.invalid(error.value.errors(), body, errors.fields_of(_Body))


def test_the_names_of_union_members_are_no_part_of_a_pointer() -> None:
    [field] = refused({"version": 1.5, "wanted": 1}).errors
    assert field.pointer == "/version"
    assert "integer" in field.message
    assert "string" in field.message
    assert field.given == "1.5"


def test_missing_and_unknown_fields_are_pointed_at_wherever_they_are() -> None:
    problem = refused({"anchors": [{"seed": 1}, {"sed": 2}], "inner": {"see": 1}, "x": 1})
    by_pointer = {field.pointer: field.message for field in problem.errors}
    assert set(by_pointer) == {"/anchors/1/sed", "/inner/see", "/x", "/wanted"}
    assert by_pointer["/anchors/1/sed"] == "unknown field; did you mean 'seed'? Allowed: seed."
    assert by_pointer["/inner/see"] == "unknown field; did you mean 'seed'? Allowed: seed."
    assert by_pointer["/x"] == "unknown field; allowed: version, anchors, inner, number, wanted"
    assert by_pointer["/wanted"] == "this field is required"


def test_a_number_that_is_not_finite_is_told_as_text() -> None:
    for value in (math.nan, math.inf, -math.inf):
        [field] = refused({"number": value, "wanted": 1}).errors
        assert (field.pointer, field.given) == ("/number", str(value))


def test_a_message_tells_of_five_fields_and_counts_the_others() -> None:
    problem = refused({"wanted": 1} | {f"x{index}": 0 for index in range(9)})
    assert len(problem.errors) == 9
    assert problem.detail.endswith("(and 4 more)")
    assert "x4: " in problem.detail
    assert "x5: " not in problem.detail


# --- on the wire --------------------------------------------------------------------------------------------------------------


def test_an_unknown_route_says_where_the_known_ones_are(broken_api: Api) -> None:
    problem = refusal(broken_api.get("/generat"), 404)
    assert problem["type"] == "/problems/not-found"
    assert problem["instance"] == "/generat"
    assert problem["detail"] == "there is no GET '/generat'; /docs lists every route"


@pytest.mark.parametrize("path", ["/%00", "/%ff", "/%F0%9F%98%80", "/" + "x" * 5000, "/models/%2e%2e/1", "/a%0d%0aSet-Cookie:x"])
def test_an_odd_path_is_no_bug(broken_api: Api, path: str) -> None:
    response = broken_api.get(path)
    refusal(response, 404)
    assert "set-cookie" not in response.headers


def test_another_method_is_told_which_is_allowed(broken_api: Api) -> None:
    for method, path, allowed in (("GET", "/generate", "POST"), ("DELETE", "/models", "GET"), ("PUT", "/jobs/x/cancel", "POST")):
        response = broken_api.send(broken_api.build(method, path))
        assert refusal(response, 405)["detail"] == f"{path!r} does not take {method}; it takes {allowed}"
        assert response.headers["allow"] == allowed


def test_a_wrong_parameter_is_pointed_at(broken_api: Api) -> None:
    problem = refusal(broken_api.get("/jobs?limit=many"), 422)
    assert pointers(problem) == ["/limit"]
    assert problem["errors"][0]["given"] == "'many'"


def test_a_bug_of_ours_is_a_500_that_tells_nothing_of_the_inside(broken_api: Api) -> None:
    problem = refusal(broken_api.get("/bug"), 500)
    assert problem["type"] == "/problems/internal-error"
    assert "its log has the traceback" in problem["detail"]
    assert "secret" not in str(problem)
    assert "ZeroDivision" not in str(problem)
    assert broken_api.get("/healthz").status_code == 200


def test_the_openapi_document_describes_every_refusal_as_a_problem(broken_api: Api) -> None:
    schema = broken_api.get("/openapi.json").json()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    assert schema["components"]["schemas"]["ProblemDocument"]["required"] == ["type", "title", "status", "detail", "instance"]
    for path, operations in schema["paths"].items():
        form = "application/json" if path.startswith("/v2") else "application/problem+json"
        for operation in operations.values():
            assert "422" not in operation["responses"]
            assert list(operation["responses"]["default"]["content"]) == [form]


def test_a_head_request_and_a_slash_too_many_are_no_bugs(broken_api: Api) -> None:
    response: httpx.Response = broken_api.send(broken_api.build("HEAD", "/models"))
    assert response.status_code in (200, 405)
    assert broken_api.get("/models/").status_code in (307, 404)


def test_the_application_touches_no_file_before_it_lives(tmp_path: Path) -> None:
    create_app(Settings(models=(tmp_path / "models",), state=tmp_path / "state"))
    assert not list(tmp_path.iterdir())
