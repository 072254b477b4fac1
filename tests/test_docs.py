"""/docs in a real browser with no network, and the OpenAPI document behind it."""

import json
import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, sync_playwright

CHROMIUM = shutil.which("chromium")
# nothing but this machine's own pages: no look-ups, no updates, no reports
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
METHODS = {"get", "post", "put", "delete"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """Of a visitor who was never here before."""
    with browser.new_context() as context:
        yield context.new_page()


@pytest.mark.browser
def test_docs_show_every_operation_and_no_request_leaves_the_host(page: Page, server: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(_host(request)))
    page.goto(f"{server}/docs")
    page.wait_for_selector(".opblock")
    schema = httpx.get(f"{server}/openapi.json").json()
    operations = sum(len(METHODS & path.keys()) for path in schema["paths"].values())
    assert page.locator(".opblock").count() == operations
    assert operations >= 14
    assert set(asked) == {server.removeprefix("http://")}


def _host(request: Request) -> str:
    return request.url.split("/")[2] if request.url.startswith("http") else request.url[:40]


@pytest.mark.browser
@pytest.mark.parametrize(
    ("method", "path"),
    [("post", "/generate"), ("post", "/interpolate"), ("get", "/models/{name}/{version}/samples.png")],
)
def test_try_it_out_shows_an_image_as_an_image(page: Page, server: str, method: str, path: str) -> None:
    block = _run(page, server, method, path)
    picture = block.locator(".response-col_description img").first
    picture.wait_for()
    assert picture.evaluate("image => image.decode().then(() => image.naturalWidth)") > 28


@pytest.mark.browser
@pytest.mark.parametrize(("method", "path"), [("post", "/discriminate"), ("get", "/models/{name}"), ("get", "/architectures")])
def test_try_it_out_answers_200_as_it_stands(page: Page, server: str, method: str, path: str) -> None:
    block = _run(page, server, method, path)
    assert block.locator(".live-responses-table tbody .response-col_status").first.inner_text().startswith("200")


def _run(page: Page, server: str, method: str, path: str) -> Locator:
    page.goto(f"{server}/docs")
    page.wait_for_selector(".opblock")
    block = page.locator(f".opblock-{method}", has=page.locator(f'[data-path="{path}"]'))
    block.locator(".opblock-summary-control").click()
    block.locator(".execute").click()
    block.locator(".live-responses-table").wait_for()
    assert page.locator(".errors-wrapper").count() == 0, page.locator(".errors-wrapper").inner_text()
    return block


def test_every_route_has_an_example_or_needs_none(server: str) -> None:
    schema = httpx.get(f"{server}/openapi.json").json()
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter["required"] and parameter["name"] != "id":  # ids are of jobs, and there is none yet
                    assert "example" in parameter, f"{method} {path} {parameter['name']}"
            for content in operation.get("requestBody", {}).get("content", {}).values():
                name = content["schema"].get("$ref", "").split("/")[-1]
                assert not name or schema["components"]["schemas"][name]["example"], f"{method} {path}"


def test_every_json_example_runs_as_it_stands(server: str) -> None:
    schema = httpx.get(f"{server}/openapi.json").json()
    bodies = {"/generate": "GenerateRequest", "/interpolate": "InterpolateRequest", "/discriminate": "DiscriminateRequest"}
    for path, name in bodies.items():
        example = schema["components"]["schemas"][name]["example"]
        response = httpx.post(f"{server}{path}", json=json.loads(json.dumps(example)), timeout=60)
        assert response.status_code == 200, f"{path}: {response.text}"
