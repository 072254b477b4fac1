"""The Open Inference Protocol, asked by Triton's own client: over HTTP where the client does it, and by its bodies elsewhere."""

import base64
import io
import json
import re
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import numpy as np
import pytest
import tritonclient.http as triton
from api_client import Api, pointers, refusal, serving
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from app.settings import Settings

pytest_plugins = ["api_fixtures"]
Array = NDArray[Any]
LENGTH = "Inference-Header-Content-Length"
NPY, ZIP, PNG = ({"accept": form} for form in ("application/x-npy", "application/zip", "image/png"))
DATATYPES = {"f": "FP32", "i": "INT64", "u": "UINT8", "O": "BYTES"}


def tensor(name: str, values: Array, *, binary: bool = True) -> triton.InferInput:
    return triton.InferInput(name, list(values.shape), DATATYPES[values.dtype.kind]).set_data_from_numpy(values, binary_data=binary)


def seeds(*values: int) -> triton.InferInput:
    return tensor("seed", np.array(values, np.int64))


def files(*contents: bytes) -> Array:
    array = np.empty(len(contents), object)
    array[:] = contents
    return array


def send(api: Api, model: str, inputs: Sequence[triton.InferInput], outputs: Sequence[str] = (), **options: object) -> httpx.Response:
    """What Triton's client sends, all outputs as binary data."""
    wanted = [triton.InferRequestedOutput(name) for name in outputs]
    content, length = triton.InferenceServerClient.generate_request_body(list(inputs), outputs=wanted, **options)
    return api.post(f"/v2/models/{model}/infer", content=content, headers={} if length is None else {LENGTH: str(length)})


def infer(api: Api, model: str, inputs: Sequence[triton.InferInput], *outputs: str, **options: object) -> list[Array]:
    response = send(api, model, inputs, outputs, **options)
    assert response.status_code == 200, response.text
    length = int(response.headers[LENGTH])
    result = triton.InferenceServerClient.parse_response_body(response.content, header_length=length)
    return [result.as_numpy(name) for name in outputs]


def refused(response: httpx.Response, status: int) -> str:
    """The message, in the protocol's one form."""
    assert response.status_code == status, response.text[:500]
    assert response.headers["content-type"] == "application/json"
    [(key, message)] = response.json().items()
    assert key == "error"
    assert message
    return str(message)


def generated(api: Api, **body: object) -> Array:
    """(N, H, W, C), as /generate answers."""
    response = api.post("/generate", body, headers=NPY)
    assert response.status_code == 200, response.text
    array: Array = np.load(io.BytesIO(response.content), allow_pickle=False)
    return array


def saved(pixels: Array) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(file, "PNG")
    return file.getvalue()


# --- Triton's client over HTTP ------------------------------------------------------------------------------------------------


@pytest.fixture
def client(server: str) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.removeprefix("http://"), concurrency=4) as client:
        yield client


def test_triton_s_client_finds_the_server_and_its_models(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    deadline = time.monotonic() + 30
    while not client.is_server_ready():  # it greets when its first model answers
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits:discriminator", "1")
    assert not client.is_model_ready("digit")
    assert not client.is_model_ready("digits", "7")
    assert client.get_server_metadata()["name"] == "ganserve"
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    ready = {(entry["name"], entry["version"]) for entry in client.get_model_repository_index() if entry["state"] == "READY"}
    assert {("digits", "1"), ("digits:discriminator", "1"), ("fashion", "1")} <= ready
    assert client.get_model_metadata("digits") == {
        "name": "digits",
        "versions": ["1"],
        "platform": "pytorch_torchscript",
        "inputs": [
            {"name": "latent", "datatype": "FP32", "shape": [-1, 128]},
            {"name": "seed", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [
            {"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28, 1]},
            {"name": "png", "datatype": "BYTES", "shape": [-1]},
        ],
    }
    judge = client.get_model_metadata("digits:discriminator", "1")
    assert judge["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 28, 28, 1]}]
    assert judge["outputs"] == [{"name": "score", "datatype": "FP32", "shape": [-1]}]


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_triton_s_client_is_answered_in_either_form(client: triton.InferenceServerClient, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("png", "image")]
    asked = tensor("seed", np.array([7, 8], np.int64), binary=binary)
    result = client.infer("digits", [asked], "1", wanted, request_id="of mine")
    images = result.as_numpy("image")
    assert (images.shape, images.dtype) == ((2, 28, 28, 1), np.uint8)
    assert [output["name"] for output in result.get_response()["outputs"]] == ["png", "image"]
    assert (result.get_response()["id"], result.get_response()["model_version"]) == ("of mine", "1")
    contents = result.as_numpy("png") if binary else [base64.b64decode(text) for text in result.as_numpy("png")]
    assert all(np.array_equal(np.asarray(Image.open(io.BytesIO(png))), image[..., 0]) for png, image in zip(contents, images, strict=True))
    scores = client.infer("digits:discriminator", [tensor("image", images, binary=binary)]).as_numpy("score")
    assert (scores.shape, scores.dtype) == ((2,), np.float32)


def test_many_of_triton_s_requests_at_once_are_answered_as_each_alone(client: triton.InferenceServerClient) -> None:
    waiting = [client.async_infer("digits", [seeds(*range(first, first + 3))]) for first in range(20)]
    together = [request.get_result().as_numpy("image") for request in waiting]
    alone = [client.infer("digits", [seeds(first)]).as_numpy("image")[0] for first in range(22)]
    for first, images in enumerate(together):
        assert np.array_equal(images, alone[first : first + 3])


def test_triton_s_client_is_told_what_is_wrong(client: triton.InferenceServerClient) -> None:
    with pytest.raises(triton.InferenceServerException, match=r"there is no model 'digit'; .* did you mean 'digits'\?") as unknown:
        client.infer("digit", [seeds(1)])
    assert unknown.value.status() == "404"
    with pytest.raises(triton.InferenceServerException, match=r"latent: its shape is \[1, 3\]; \[-1, 128\] is allowed") as invalid:
        client.infer("digits", [tensor("latent", np.zeros((1, 3), np.float32))])
    assert invalid.value.status() == "422"
    with pytest.raises(triton.InferenceServerException, match="the body is compressed by 'gzip'; send it as it is"):
        client.infer("digits", [seeds(1)], request_compression_algorithm="gzip")
    with pytest.raises(triton.InferenceServerException, match="there is no POST '/v2/repository/models/digits/load'"):
        client.load_model("digits")


def test_the_page_on_serving_is_right_as_it_is_printed(server: str, root: Path) -> None:
    [program] = re.findall(r"```python\n(.*?import tritonclient.*?)```", (root / "docs" / "serving.md").read_text("utf-8"), flags=re.DOTALL)
    found: dict[str, Any] = {}
    exec(program.replace("127.0.0.1:8000", server.removeprefix("http://")), found)  # noqa: S102
    found["client"].close()
    assert (found["pictures"].shape, found["scores"].shape) == ((2, 28, 28, 1), (2,))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found["first_file"]))), found["pictures"][0, ..., 0])


# --- the same as the other routes give ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["digits", "colour"])
def test_images_and_files_of_seeds_are_those_of_generate_to_the_bit(api: Api, model: str) -> None:
    asked = (12, 3, 4, 2**32 - 1, 3)
    images, contents = infer(api, model, [seeds(*asked)], "image", "png")
    for seed, image, png in zip(asked, images, contents, strict=True):
        body = {"model": model, "num_images": 1, "seed": seed}
        assert np.array_equal(image, generated(api, **body)[0])
        archive = zipfile.ZipFile(io.BytesIO(api.post("/generate", body, headers=ZIP).content))
        assert png == archive.read(f"{model}-1-seed-{seed}.png") == api.post("/generate", body, headers=PNG).content


def test_a_file_notes_the_version_and_the_truncation_that_were_asked_for(api: Api) -> None:
    body = {"inputs": [{"name": "seed", "shape": [1], "datatype": "INT64", "data": [5]}], "outputs": [{"name": "png"}]}
    answer = api.post("/v2/models/digits/versions/1/infer", body | {"parameters": {"truncation": 0.5}}).json()
    asked = {"model": "digits", "version": 1, "num_images": 1, "seed": 5, "truncation": 0.5}
    assert base64.b64decode(answer["outputs"][0]["data"][0]) == api.post("/generate", asked, headers=PNG).content


def test_given_latents_are_those_of_generate(api: Api) -> None:
    latents = np.random.default_rng(0).standard_normal((3, 8), dtype=np.float32)
    images, contents = infer(api, "blind", [tensor("latent", latents)], "image", "png")
    assert np.array_equal(images, generated(api, model="blind", latents=latents.tolist()))
    one = {"model": "blind", "num_images": 1, "latents": latents[2:].tolist()}
    assert contents[2] == api.post("/generate", one, headers=PNG).content


def test_labels_are_weights_of_the_classes(api: Api) -> None:
    weights = np.array([[0, 1, 0], [1, 0, 0], [2, 0, 2]], np.float32)
    [contents] = infer(api, "labelled", [tensor("label", weights), seeds(5, 5, 6)], "png")
    wanted = [(5, "dog"), (5, "cat"), (6, {"cat": 2, "fox": 2})]
    for png, (seed, label) in zip(contents, wanted, strict=True):
        body = {"model": "labelled", "num_images": 1, "seed": seed, "labels": [label]}
        assert png == api.post("/generate", body, headers=PNG).content


def test_scores_are_those_of_discriminate_for_pixels_and_for_files(api: Api) -> None:
    images, contents = infer(api, "digits", [seeds(*range(6))], "image", "png")
    large = saved(np.asarray(Image.radial_gradient("L").resize((80, 60))))
    [scores] = infer(api, "digits:discriminator", [tensor("image", images)], "score")
    [of_files] = infer(api, "digits:discriminator", [tensor("image", files(*contents, large))], "score")
    body = {"model": "digits", "images": [base64.b64encode(content).decode() for content in (*contents, large)]}
    wanted = [score["score"] for score in api.post("/discriminate", body).json()["scores"]]
    assert of_files.tolist() == wanted
    assert scores.tolist() == wanted[:6]
    in_json = {"name": "image", "shape": [7], "datatype": "BYTES", "data": body["images"]}
    assert api.post("/v2/models/digits:discriminator/infer", {"inputs": [in_json]}).json()["outputs"][0]["data"] == wanted


def test_a_discriminator_of_classes_and_one_of_pairs_take_what_they_judge(kinds: Api) -> None:
    [images] = infer(kinds, "classes", [tensor("label", np.eye(3, dtype=np.float32)), seeds(1, 2, 3)], "image")
    [scores] = infer(kinds, "classes:discriminator", [tensor("image", images), tensor("label", np.eye(3, dtype=np.float32))], "score")
    uploads = [base64.b64encode(saved(image)).decode() for image in images]
    judged = kinds.post("/discriminate", {"model": "classes", "images": uploads, "labels": ["cat", "dog", "fox"]}).json()
    assert scores.tolist() == [score["score"] for score in judged["scores"]]

    for model in ("pairs", "whole"):
        [scores] = infer(kinds, f"{model}:discriminator", [tensor("image", images), tensor("source", images[::-1].copy())], "score")
        judged = kinds.post("/discriminate", {"model": model, "images": uploads, "sources": uploads[::-1]}).json()
        assert scores.tolist() == [score["score"] for score in judged["scores"]]


def test_a_picture_of_a_picture_is_that_of_transform(kinds: Api) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 6, 10, 3), np.uint8)
    images, contents = infer(kinds, "enlarge", [tensor("image", pixels)], "enlarged", "png")
    assert images.shape == (2, 12, 20, 3)
    for row, picture in enumerate(pixels):
        upload = saved(picture)
        wanted = kinds.post("/transform", {"model": "enlarge", "image": base64.b64encode(upload).decode()}).content
        assert contents[row] == wanted
        assert np.array_equal(images[row], np.asarray(Image.open(io.BytesIO(wanted))))
        assert infer(kinds, "enlarge", [tensor("image", files(upload))], "png")[0][0] == wanted
    metadata = kinds.get("/v2/models/enlarge").json()
    assert metadata["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert metadata["outputs"][0] == {"name": "enlarged", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}


def test_a_part_is_a_model_too(kinds: Api) -> None:
    images, contents = infer(kinds, "staged:stages", [seeds(3, 9)], "image", "png")
    assert np.array_equal(images[1:], generated(kinds, model="staged", part="stages", num_images=1, seed=9))
    asked = {"model": "staged", "part": "stages", "num_images": 1, "seed": 9}
    assert contents[1] == kinds.post("/generate", asked, headers=PNG).content


def test_what_no_other_route_can_bring_together_comes_as_tensors(kinds: Api) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    images, contents = infer(kinds, "beside", [tensor("image", pixels), seeds(*range(5))], "made", "png")
    [alone] = infer(kinds, "beside", [tensor("image", pixels[3:4]), seeds(3)], "made")
    assert np.array_equal(images[3:4], alone)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(contents[3]))), images[3, ..., 0])
    assert len({image.tobytes() for image in images}) == 5


# --- forms of a request -------------------------------------------------------------------------------------------------------


def test_flat_and_nested_values_are_the_same(api: Api) -> None:
    latents = np.random.default_rng(1).standard_normal((2, 8), dtype=np.float32)
    forms = (latents.tolist(), latents.ravel().tolist())
    bodies = ({"inputs": [{"name": "latent", "shape": [2, 8], "datatype": "FP32", "data": data}]} for data in forms)
    first, second = (api.post("/v2/models/blind/infer", body).json() for body in bodies)
    assert first == second
    [images] = first["outputs"]
    assert np.array_equal(np.reshape(images["data"], (2, 8, 8, 1)), generated(api, model="blind", latents=forms[0]))


def test_an_answer_names_the_version_that_made_it(api: Api) -> None:
    response = send(api, "digits:discriminator", [tensor("image", np.zeros((1, 28, 28, 1), np.uint8))])
    assert (response.headers["x-model"], response.headers["x-version"]) == ("digits", "1")


def test_one_output_may_be_binary_and_another_not(api: Api) -> None:
    outputs = [{"name": "image", "parameters": {"binary_data": False}}, {"name": "png"}]
    body = {"model_name": "digits", "inputs": [SEED], "outputs": outputs, "parameters": {"binary_data_output": True}}
    response = api.post("/v2/models/digits/infer", body)
    length = int(response.headers[LENGTH])
    image, png = json.loads(response.content[:length])["outputs"]
    assert len(image["data"]) == 28 * 28
    assert png["parameters"] == {"binary_data_size": len(response.content) - length}
    assert response.content[length + 4 :].startswith(b"\x89PNG")


def test_the_example_of_the_documents_runs_as_it_stands(kinds: Api) -> None:
    body = kinds.get("/openapi.json").json()["components"]["schemas"]["InferRequest"]["example"]
    assert kinds.post("/v2/models/staged/infer", body).status_code == 200


# --- refusals -----------------------------------------------------------------------------------------------------------------

Entry = dict[str, Any]
SEED: Entry = {"name": "seed", "shape": [1], "datatype": "INT64", "data": [7]}
LATENT: Entry = {"name": "latent", "shape": [1, 8], "datatype": "FP32", "data": [0.5] * 8}
LABEL: Entry = {"name": "label", "shape": [1, 3], "datatype": "FP32", "data": [1, 0, 0]}
PIXELS: Entry = {"name": "image", "shape": [1, 8, 8, 1], "datatype": "UINT8", "data": [0] * 64}
FILE: Entry = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["AA=="]}
BLIND, LABELLED, JUDGE = "blind", "labelled", "critic:discriminator"

BAD_INPUTS: list[tuple[str, list[Entry], str]] = [
    (BLIND, [], "inputs is []: list should have at least 1 item"),
    (BLIND, [SEED | {"datatype": "INT32"}], "is 'INT32': input should be 'FP32', 'INT64', 'UINT8' or 'BYTES'"),
    (BLIND, [SEED | {"shape": [0], "data": []}], "inputs.0.shape.0 is 0: input should be greater than or equal to 1"),
    (BLIND, [SEED | {"shape": [257], "data": [1] * 257}], "1 to 256 are allowed"),
    (BLIND, [SEED | {"data": [1, 2]}], "seed: a shape of [1] has 1 values, and 2 are given"),
    (BLIND, [SEED | {"data": [True]}], "seed: INT64 are int values"),
    (BLIND, [SEED | {"data": [1.0]}], "seed: INT64 are int values"),
    (BLIND, [SEED | {"data": [2**64]}], "seed: a value is out of the range of INT64"),
    (BLIND, [SEED | {"data": [-1]}], "seed: seeds are 0 to 4294967295"),
    (BLIND, [SEED | {"data": None}], "seed: values come as `data`, or behind the JSON object"),
    (BLIND, [SEED | {"parameters": {"binary_data_size": 8}}], "give one of the two"),
    (BLIND, [SEED | {"data": None, "parameters": {"binary_data_size": 8}}], "binary_data_size is 8, and 0 bytes are left"),
    (BLIND, [SEED, SEED], "seed: this input stands here twice"),
    (BLIND, [SEED, LATENT], "seed: a seed takes the place of latent; give one of the two"),
    (BLIND, [LATENT | {"data": [[0.5] * 4] * 2}], "latent: FP32 are float or int values, flat or as the shape is nested"),
    (BLIND, [LATENT | {"data": [101] * 8}], "latent: numbers from -100 to 100 are allowed"),
    (BLIND, [LATENT | {"data": [1e300] * 8}], "latent: numbers from -100 to 100 are allowed"),
    (BLIND, [LATENT | {"data": ["1"] * 8}], "latent: FP32 are float or int values"),
    (BLIND, [LATENT | {"shape": [8]}], "latent: its shape is [8]; [-1, 8] is allowed"),
    (BLIND, [LATENT | {"datatype": "INT64", "data": [1] * 8}], "latent: it is INT64; FP32 of shape [-1, 8] is allowed"),
    (BLIND, [LATENT | {"name": "latents"}], "latents: the model takes no such input; it takes latent, seed; did you mean 'latent'?"),
    (LABELLED, [SEED], "inputs: label is missing"),
    (LABELLED, [LABEL], "inputs: latent is missing; seed can take the place of latent"),
    (LABELLED, [SEED | {"name": "label"}], "label: it is INT64; FP32 of shape [-1, 3] is allowed"),
    (LABELLED, [SEED, LABEL | {"shape": [2, 3], "data": [1] * 6}], "label: it has 2 rows, and seed has 1; each row is one of all inputs"),
    (LABELLED, [SEED, LABEL | {"data": [0, 0, 0]}], "weights of 0 and more are allowed, with a finite sum above 0"),
    (LABELLED, [SEED, LABEL | {"data": [-1, 2, 0]}], "weights of 0 and more are allowed"),
    (JUDGE, [PIXELS | {"data": [256] * 64}], "image: a value is out of the range of UINT8"),
    (JUDGE, [PIXELS | {"shape": [1, 8, 4, 2]}], "image: its shape is [1, 8, 4, 2]; [-1, 8, 8, 1] is allowed"),
    (JUDGE, [LATENT | {"name": "image"}], "image: it is FP32; UINT8, or BYTES of picture files, of shape [-1, 8, 8, 1] is allowed"),
    (JUDGE, [FILE | {"data": ["!"]}], "image: in JSON, BYTES are base64, and '!' is none"),
    (JUDGE, [FILE | {"shape": [1, 1]}], "image: BYTES have one element a row"),
    (JUDGE, [FILE | {"shape": [2]}], "image: the shape has 2 elements, and 1 are given"),
    (JUDGE, [FILE], "image[0]: "),
]
BAD_REQUESTS: list[tuple[str, Entry, str]] = [
    (BLIND, {}, "inputs: this field is required"),
    (BLIND, {"inputs": [SEED], "output": []}, "output: unknown field; did you mean 'outputs'?"),
    (BLIND, {"inputs": [SEED], "parameters": {"priority": 1}}, "priority: unknown field; allowed: binary_data_output, timeout, truncation"),
    (BLIND, {"inputs": [SEED], "parameters": {"timeout": 10**400}}, "parameters.timeout is 1000"),
    (BLIND, {"inputs": [SEED], "parameters": {"truncation": 2}}, "parameters.truncation is 2: input should be less than or equal to 1"),
    (BLIND, {"inputs": [SEED], "model_name": "digits"}, "model_name: the path says blind; say the same, or leave it out"),
    (BLIND, {"inputs": [SEED], "outputs": [{"name": "images"}]}, "the model gives no 'images'; it gives image, png; did you mean 'image'?"),
    (BLIND, {"inputs": [SEED], "outputs": [{"name": "png"}] * 2}, "outputs: png, png names one twice"),
    (JUDGE, {"inputs": [PIXELS], "parameters": {"truncation": 0.5}}, "parameters.truncation: the model takes no latent"),
]
BAD = [*((model, {"inputs": inputs}, message) for model, inputs, message in BAD_INPUTS), *BAD_REQUESTS]


@pytest.mark.parametrize(("model", "body", "message"), BAD, ids=[message for _, _, message in BAD])
def test_a_request_that_does_not_fit_is_told_why(api: Api, model: str, body: dict[str, Any], message: str) -> None:
    assert message in refused(api.post(f"/v2/models/{model}/infer", body), 422)


@pytest.mark.parametrize(
    ("content", "length", "message"),
    [
        (b"", None, "the body is no JSON"),
        (b"[]", None, "body is []: input should be a valid dictionary"),
        (b"{} 1", None, f"{LENGTH} says where it ends, if bytes follow"),
        (b'{"inputs": NaN}', None, "the body is no JSON"),
        (b"[" * 10_000, None, "the body is no JSON"),
        (b"{}", "3", f"{LENGTH} is '3', and the body has 2 bytes"),
        (b"{}", "-1", f"{LENGTH} is '-1'"),
        (b"{}", "9" * 5000, f"{LENGTH} is '999"),
        (b"{}", "\xb2", f"{LENGTH} is "),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_body_that_cannot_be_read_is_refused(api: Api, content: bytes, length: str | None, message: str) -> None:
    headers = [] if length is None else [(LENGTH, length.encode("latin-1"))]
    response = api.post("/v2/models/blind/infer", content=content, headers=headers)
    assert message in refused(response, 422 if content == b"[]" else 400)


def framed(entry: dict[str, Any], behind: bytes) -> tuple[bytes, dict[str, str]]:
    text = json.dumps({"inputs": [{key: value for key, value in entry.items() if key != "data"}]}).encode()
    return text + behind, {LENGTH: str(len(text))}


@pytest.mark.parametrize(
    ("entry", "size", "behind", "message"),
    [
        (SEED, 8, bytes(9), "the body has 1 bytes more than its inputs' binary_data_size say"),
        (SEED, 8, bytes(7), "seed: its binary_data_size is 8, and 7 bytes are left of the body"),
        (SEED, 4, bytes(4), "seed: INT64 of shape [1] are 8 bytes, and 4 are given"),
        (LATENT, 32, np.full(8, np.nan, "<f4").tobytes(), "latent: numbers from -100 to 100 are allowed"),
        (FILE, 3, bytes(3), "each element of BYTES has its length before it"),
        (FILE, 5, b"\xff\xff\xff\xff1", "each element of BYTES has its length before it"),
        (FILE, 8, bytes(8), "the shape has 1 elements, and 2 are given"),
        (PIXELS | {"shape": [1, 2**31, 2**31, 2**31, 2**31]}, 1, b"1", "bytes, and 1 are given"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bytes_that_are_not_the_tensors_are_refused(api: Api, entry: dict[str, Any], size: int, behind: bytes, message: str) -> None:
    model = JUDGE if entry["name"] == "image" else BLIND
    content, headers = framed(entry | {"parameters": {"binary_data_size": size}}, behind)
    assert message in refused(api.post(f"/v2/models/{model}/infer", content=content, headers=headers), 422)


def test_pictures_of_a_size_that_the_model_cannot_take_are_refused(kinds: Api) -> None:
    def refusal_of(model: str, *inputs: triton.InferInput, status: int = 422) -> str:
        return refused(send(kinds, model, inputs), status)

    def black(*shape: int) -> Array:
        return np.zeros(shape, np.uint8)

    odd = "this picture is 5 wide and 4 high; the width must be a multiple of 2"
    assert odd in refusal_of("whole", tensor("image", black(1, 4, 5, 1)))
    assert odd in refusal_of("whole", tensor("image", files(saved(black(4, 5)))))
    assert "image[0]: this picture is 9 wide" in refusal_of("fixed", tensor("image", files(saved(black(9, 9)))))
    assert "this model must see a picture whole" in refusal_of("whole", tensor("image", black(1, 1026, 1024, 1)), status=413)
    assert "2 pictures of 1024 x 1024 are too many pixels" in refusal_of("whole", tensor("image", black(2, 1024, 1024, 1)))
    assert "files have sizes of their own: send one" in refusal_of("whole", tensor("image", files(saved(black(4, 4)), saved(black(4, 4)))))
    pair = (tensor("image", black(1, 4, 4, 1)), tensor("source", black(1, 6, 6, 1)))
    assert "the sizes of these do not" in refusal_of("whole:discriminator", *pair)


def test_pixels_that_are_too_many_for_json_are_answered_as_binary_data_alone(kinds: Api) -> None:
    def answer(*, binary: bool) -> httpx.Response:
        inputs = [tensor("image", np.zeros((1, 600, 600, 3), np.uint8))]
        outputs = [triton.InferRequestedOutput("enlarged", binary_data=binary)]
        content, length = triton.InferenceServerClient.generate_request_body(inputs, outputs=outputs)
        return kinds.post("/v2/models/enlarge/infer", content=content, headers={LENGTH: str(length)})

    response = answer(binary=False)
    assert "run" not in response.headers["server-timing"], "refused before the networks ran"
    message = refused(response, 422)
    assert message == "enlarged: 4320000 values are too many for JSON, 4194304 are allowed; ask for binary_data"
    assert answer(binary=True).status_code == 200


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/v2/models/nobody", "there is no model 'nobody'"),
        ("/v2/models/digits:generato", "there is no model 'digits:generato'; of digits version 1 there are: digits, digits:discriminator"),
        ("/v2/models/digits:", "there is no model 'digits:'"),
        ("/v2/models/blind:discriminator/ready", "of blind version 1 there are: blind"),
        ("/v2/models/digits/versions/best", "model 'digits' has no version 'best'; versions: 1"),
        ("/v2/models/digits/versions/2/ready", "model 'digits' has no version '2'"),
        ("/v2/model", "there is no GET '/v2/model'"),
    ],
)
def test_what_is_not_there_names_what_is(api: Api, path: str, message: str) -> None:
    assert message in refused(api.get(path), 404)


def test_every_refusal_under_v2_has_the_protocol_s_form_and_no_other(api: Api, tmp_path: Path) -> None:
    assert "does not take GET" in refused(api.get("/v2/models/digits/infer"), 405)
    assert "at most 63" in refused(api.get(f"/v2/models/digits/versions/{'9' * 5000}"), 422)
    too_long = {"content-length": str(2**40)}
    assert "the body has 1099511627776 bytes" in refused(api.post("/v2/models/digits/infer", content=b"x", headers=too_long), 413)
    much_json = b'{"inputs": [' + b" " * 2**24
    assert "send the tensors as binary data" in refused(api.post("/v2/models/digits/infer", content=much_json), 413)
    assert "asked for a change" in refused(api.post("/v2/repository/index", headers={"origin": "http://evil.example"}), 403)
    assert pointers(refusal(api.get("/models/digits/" + "9" * 64), 422)) == ["/version"], "all others stay as they are"
    with serving(Settings(models=(tmp_path,), state=tmp_path / "state", run_jobs=False, api_key="a-key-of-this-test-alone")) as keyed:
        for path in ("/v2", "/v2/models/digits", "/v2/nowhere", "/v2/health/live/"):
            assert "wants its key" in refused(keyed.get(path), 401)
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert keyed.get(path).status_code == 200


def test_triton_s_timeout_is_the_deadline(api: Api) -> None:
    assert "was not ready within" in refused(send(api, "digits", [seeds(*range(256))], ["png"], timeout=1), 504)
    assert send(api, "digits", [seeds(1)], ["png"], timeout=60_000_000).status_code == 200
    body = {"inputs": [SEED], "outputs": [{"name": "png"}], "parameters": {"timeout": 1}}
    response = api.post("/v2/models/blind/infer", body, headers={"Prefer": "wait=10"})
    assert refused(response, 504) == "the answer was not ready within 1e-06 s; allow more in parameters.timeout"
    assert "preference-applied" not in response.headers


def test_broken_versions_stand_in_the_index_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "models" / "bad" / "1").mkdir(parents=True)
    (tmp_path / "models" / "bad" / "1" / "manifest.json").write_text("{}")
    with serving(Settings(models=(tmp_path / "models",), state=tmp_path / "state", run_jobs=False)) as api:
        [entry] = api.post("/v2/repository/index").json()
        assert (entry["name"], entry["version"], entry["state"]) == ("bad", "1", "UNAVAILABLE")
        assert entry["reason"]
        assert api.post("/v2/repository/index", {"ready": True}).json() == []
        assert "is broken" in refused(api.get("/v2/models/bad/ready"), 404)


def test_a_model_that_is_not_loaded_yet_is_not_ready(tmp_path: Path, make_version: Callable[..., object]) -> None:
    models = tmp_path / "models"
    make_version(models, "early", with_discriminator=False)
    with serving(Settings(models=(models,), state=tmp_path / "state", run_jobs=False), wait=False) as api:
        ready = api.get("/v2/health/ready")
        assert (ready.status_code, ready.json()["live"]) == (200 if ready.json()["ready"] else 503, True)
        api.refresh()
        assert api.get("/v2/health/ready").json() == {"live": True, "ready": True}

        gate = threading.Event()
        held = api.begin(api.service.batcher.run_on_thread, gate.wait)  # nothing is loaded until it opens
        make_version(models, "late", with_discriminator=False)
        api.begin(api.service.store.look).result(30)
        response = api.get("/v2/models/late/ready")
        assert (response.status_code, response.json()) == (503, {"name": "late", "ready": False})
        states = {entry["name"]: entry["state"] for entry in api.post("/v2/repository/index").json()}
        assert states == {"early": "READY", "late": "LOADING"}
        assert [entry["name"] for entry in api.post("/v2/repository/index", {"ready": True}).json()] == ["early"]
        gate.set()
        held.result(30)
        api.refresh()
        assert api.get("/v2/models/late/ready").json() == {"name": "late", "ready": True}


@hypothesis.settings(max_examples=60, suppress_health_check=list(hypothesis.HealthCheck))
@given(st.data())
def test_no_body_is_a_bug_of_ours(api: Api, data: st.DataObject) -> None:
    sizes = [{"binary_data_size": size} for size in (0, 4, 8)]
    value = st.sampled_from([None, True, -1, 0, 1, 2**70, 1.5, "", "x", [], [[]], [1], {}, *sizes, "FP32", "BYTES", "seed"])
    entry = SEED | {data.draw(st.sampled_from([*SEED, "parameters", "x"])): data.draw(value) for _ in range(data.draw(st.integers(1, 3)))}
    behind = data.draw(st.binary(max_size=12))
    content, headers = framed(entry, behind)
    if data.draw(st.booleans()):
        content = json.dumps({"inputs": [entry], "outputs": data.draw(value)}).encode()
        headers = {}
    response = api.post("/v2/models/blind/infer", content=content, headers=headers)
    assert response.status_code == 200 or refused(response, response.status_code)
    assert response.status_code in (200, 400, 422)
