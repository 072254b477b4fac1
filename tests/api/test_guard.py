"""Who may ask at all: the Host, the page that asks, and the key."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from api_client import Api, refusal, serving

from app.settings import Settings

KEY = "0123456789-a-key-of-this-test"
METHODS = ("get", "post", "put", "delete", "patch")
PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")


def settings(folder: Path) -> Settings:
    return Settings(models=(folder / "models",), state=folder / "state", run_jobs=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("guard")


@pytest.fixture(scope="module")
def open_api(folder: Path) -> Iterator[Api]:
    """A server on loopback without a key, which serves nothing."""
    with serving(settings(folder)) as api:
        yield api


@pytest.fixture(scope="module")
def named_api(folder: Path) -> Iterator[Api]:
    """A server that answers to one more name."""
    with serving(replace(settings(folder), allowed_hosts=("gan.example.org",))) as api:
        yield api


@pytest.fixture(scope="module")
def keyed_api(folder: Path) -> Iterator[Api]:
    with serving(replace(settings(folder), api_key=KEY)) as api:
        yield api


def with_hosts(api: Api, *hosts: str) -> httpx.Response:
    request = api.build("GET", "/models", headers=[("host", host.encode("latin-1")) for host in hosts])
    if not hosts:
        del request.headers["host"]
    assert request.headers.get_list("host") == list(hosts)
    return api.send(request)


# --- Host ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "localhost:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_a_host_of_loopback_is_answered(open_api: Api, host: str) -> None:
    assert with_hosts(open_api, host).status_code == 200


@pytest.mark.parametrize(
    "hosts",
    [
        (),
        ("",),
        ("evil.example",),
        ("evil.example:8000",),
        ("localhost.evil.example",),
        ("evil.example#localhost",),
        ("evil.example@localhost",),
        ("localhost:8000:8000",),
        ("localhost:port",),
        ("127.0.0.1.evil.example",),
        ("127.0.0.2",),
        ("0.0.0.0",),
        ("::1",),
        ("[::1",),
        ("localhost.",),
        ("gan.example.org",),
        ("localhost", "localhost"),
        ("localhost", "evil.example"),
        ("local\xff",),
    ],
    ids=str,
)
def test_a_missing_a_foreign_and_a_second_host_are_refused(open_api: Api, hosts: tuple[str, ...]) -> None:
    problem = refusal(with_hosts(open_api, *hosts), 421)
    assert problem["type"] == "/problems/misdirected-request"
    assert "127.0.0.1, [::1], localhost" in problem["detail"]
    assert "GANSERVE_ALLOWED_HOSTS" in problem["detail"]


def test_every_path_is_behind_the_host_rule(open_api: Api) -> None:
    for path in ("/", "/docs", "/openapi.json", "/_swagger/swagger-ui.css", "/healthz", "/readyz", "/nowhere"):
        refusal(open_api.get(path, headers={"host": "evil.example"}), 421)


@pytest.mark.parametrize("host", ["gan.example.org", "GAN.example.org:443", "localhost:8000"])
def test_a_name_of_the_settings_is_answered_beside_loopback(named_api: Api, host: str) -> None:
    assert with_hosts(named_api, host).status_code == 200


@pytest.mark.parametrize("host", ["example.org", "www.gan.example.org", "gan.example.org.evil.example"])
def test_only_the_name_itself_is_answered(named_api: Api, host: str) -> None:
    assert "gan.example.org" in refusal(with_hosts(named_api, host), 421)["detail"]


def test_with_a_key_and_no_list_any_host_is_answered(keyed_api: Api) -> None:
    right = {"authorization": f"Bearer {KEY}"}
    assert keyed_api.get("/models", headers=right | {"host": "192.168.1.7:8000"}).status_code == 200
    refusal(keyed_api.send(keyed_api.build("GET", "/models", headers=[("host", "a"), ("host", "b"), *right.items()])), 421)


def test_with_a_key_and_a_list_the_list_is_kept_to(folder: Path) -> None:
    with serving(replace(settings(folder), api_key=KEY, allowed_hosts=("gan.example.org",))) as api:
        right = {"authorization": f"Bearer {KEY}"}
        assert api.get("/models", headers=right | {"host": "gan.example.org"}).status_code == 200
        refusal(api.get("/models", headers=right | {"host": "192.168.1.7"}), 421)


# --- Origin -------------------------------------------------------------------------------------------------------------------


def ask_for_a_change(api: Api, *origins: str) -> httpx.Response:
    headers = [("host", b"localhost:8000"), *(("origin", origin.encode("latin-1")) for origin in origins)]
    return api.post("/generate", {"model": "none"}, headers=headers)


@pytest.mark.parametrize(
    "origins",
    [
        ("null",),
        ("",),
        ("http://evil.example",),
        ("https://localhost.evil.example:8000",),
        ("http://localhost:3000",),
        ("http://localhost",),
        ("http://127.0.0.1:8000",),
        ("http://evil.example@localhost:8000",),
        ("file://localhost:8000",),
        ("chrome-extension://localhost:8000",),
        ("localhost:8000",),
        ("http://localhost:8000", "http://localhost:8000"),
        ("http://localhost:8000", "http://evil.example"),
        ("http://[",),
        ("http://[::1]bad",),
        ("\xff",),
    ],
    ids=str,
)
def test_a_change_that_another_page_asks_for_is_refused(open_api: Api, origins: tuple[str, ...]) -> None:
    problem = refusal(ask_for_a_change(open_api, *origins), 403)
    assert problem["type"] == "/problems/cross-origin"
    assert "only pages of this server may" in problem["detail"]


@pytest.mark.parametrize("origins", [(), ("http://localhost:8000",), ("https://localhost:8000",)])
def test_our_own_pages_and_programs_may_ask_for_a_change(open_api: Api, origins: tuple[str, ...]) -> None:
    refusal(ask_for_a_change(open_api, *origins), 404)  # as far as the model, which is not there


def test_a_page_elsewhere_may_ask_for_what_changes_nothing_and_cannot_read_the_answer(open_api: Api) -> None:
    response = open_api.get("/models", headers={"origin": "https://evil.example"})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control-")]


def test_a_preflight_from_elsewhere_is_given_no_leave(open_api: Api) -> None:
    headers = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    response = open_api.send(open_api.build("OPTIONS", "/generate", headers=headers))
    refusal(response, 405)
    assert not [name for name in response.headers if name.startswith("access-control-")]


# --- the key ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        (),
        ("",),
        ("Bearer",),
        ("Bearer ",),
        ("Bearer wrong",),
        (f"Bearer {KEY}x",),
        (f"Bearer {KEY[:-1]}",),
        (f"Bearer {KEY.upper()}",),
        (f"Bearer {KEY} {KEY}",),
        (f"Basic {KEY}",),
        (f"Token {KEY}",),
        (KEY,),
        (f"Bearer: {KEY}",),
        (f"Bearer\t{KEY}",),
        (f"Bearer {KEY}", f"Bearer {KEY}"),
        ("Bearer wrong", f"Bearer {KEY}"),
        ("Bearer \xff",),
    ],
    ids=str,
)
def test_no_key_and_another_key_get_one_and_the_same_answer(keyed_api: Api, given: tuple[str, ...]) -> None:
    headers = [("authorization", value.encode("latin-1")) for value in given]
    response = keyed_api.send(keyed_api.build("GET", "/models", headers=headers))
    problem = refusal(response, 401)
    assert response.headers["www-authenticate"] == "Bearer"
    assert problem["detail"] == "this server wants its key: send the header `Authorization: Bearer <key>`"
    assert KEY not in response.text


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER {KEY}", f"Bearer  {KEY} "])
def test_the_right_key_opens(keyed_api: Api, given: str) -> None:
    assert keyed_api.get("/models", headers={"authorization": given}).status_code == 200


def test_a_key_in_the_address_opens_nothing(keyed_api: Api) -> None:
    for name in ("key", "api_key", "token", "access_token"):
        refusal(keyed_api.get(f"/models?{name}={KEY}"), 401)


def test_the_probes_are_free_and_no_path_like_them(keyed_api: Api) -> None:
    for path in PROBES:
        assert keyed_api.get(path).status_code == 200
    for path in ("/healthz/", "/readyz/x", "//healthz", "/healthz%2f..%2fmodels", "/HEALTHZ", "/nowhere"):
        refusal(keyed_api.get(path), 401)


def test_every_route_is_closed_without_the_key(keyed_api: Api) -> None:
    paths = keyed_api.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"}).json()["paths"]
    assert len(paths) >= 12
    pages = {path: {"get": None} for path in ("/", "/docs", "/openapi.json", "/_swagger/swagger-ui.css", "/_swagger/swagger-ui-bundle.js")}
    closed = 0
    for path, operations in (paths | pages).items():
        for method in METHODS:
            response = keyed_api.send(keyed_api.build(method.upper(), path.replace("{", "").replace("}", "")))
            if path in PROBES:
                assert response.status_code == (200 if method == "get" else 405)
            elif path.startswith("/v2"):
                assert (response.status_code, response.json().keys()) == (401, {"error"})
                closed += method in operations
            else:
                refusal(response, 401)
                closed += method in operations
    assert closed >= 17


def test_the_key_is_asked_for_before_a_body_is_read(keyed_api: Api) -> None:
    refusal(keyed_api.post("/discriminate", content=b"x", headers={"content-length": str(10**12)}), 401)
