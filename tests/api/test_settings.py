"""The environment becomes settings, or one sentence that says why not."""

import os
from pathlib import Path

import pytest

from app.settings import Settings, SettingsError, check_exposure, from_environment, is_loopback

KEY = "a-key-of-16-char"


def test_an_empty_environment_gives_the_defaults() -> None:
    assert from_environment({}) == Settings()
    names = ("MODELS", "STATE", "DEVICE", "THREADS", "BACKEND", "HOST", "PORT", "ALLOWED_HOSTS", "API_KEY", "API_KEY_FILE")
    names += ("QUEUE_IMAGES", "QUEUE_MEGABYTES", "DEADLINE_SECONDS", "LOG_FORMAT", "ACCESS_LOG", "MODEL_MEMORY_MEGABYTES", "PIN")
    assert from_environment({f"GANSERVE_{name}": "" for name in names}) == Settings(), "set to nothing is not set"


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("MODELS", "models", "models", (Path("models"),)),
        ("MODELS", f"/a{os.pathsep}b", "models", (Path("/a"), Path("b"))),
        ("MODELS", f"{os.pathsep}/a{os.pathsep}", "models", (Path("/a"),)),
        ("STATE", "/var/lib/ganserve", "state", Path("/var/lib/ganserve")),
        ("DEVICE", "cuda:1", "device", "cuda:1"),
        ("THREADS", "1", "threads", 1),
        ("THREADS", "1024", "threads", 1024),
        ("BACKEND", "onnxruntime", "backend", "onnxruntime"),
        ("HOST", "0.0.0.0", "host", "0.0.0.0"),
        ("PORT", "1", "port", 1),
        ("PORT", "65535", "port", 65535),
        ("PORT", "0", "port", 0),
        ("ALLOWED_HOSTS", "gan.example.org", "allowed_hosts", ("gan.example.org",)),
        ("ALLOWED_HOSTS", " A.example , ,b.EXAMPLE,", "allowed_hosts", ("a.example", "b.example")),
        ("QUEUE_IMAGES", "1", "queue_images", 1),
        ("QUEUE_MEGABYTES", "64", "queue_megabytes", 64),
        ("DEADLINE_SECONDS", "86400", "deadline_seconds", 86400),
        ("MODEL_MEMORY_MEGABYTES", "256", "model_memory_megabytes", 256),
        ("KEEP_VERSIONS", "5", "keep_versions", 5),
        ("PIN", " digits,, fashion ", "pins", ("digits", "fashion")),
        ("LOG_FORMAT", "json", "log_format", "json"),
        ("ACCESS_LOG", "1", "access_log", True),
        ("ACCESS_LOG", "0", "access_log", False),
        ("API_KEY", KEY, "api_key", KEY),
        ("API_KEY", "!" * 300, "api_key", "!" * 300),
    ],
)
def test_the_environment_is_read(name: str, text: str, field: str, value: object) -> None:
    settings = from_environment({f"GANSERVE_{name}": text})
    assert getattr(settings, field) == value
    assert settings == Settings(**{field: value}), "and nothing else changes"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("PORT", "65536"),
        ("PORT", "-1"),
        ("PORT", "http"),
        ("PORT", "8000.0"),
        ("PORT", " 8000"),
        ("PORT", "8_000"),
        ("PORT", "８０００"),
        ("PORT", "9" * 5000),
        ("THREADS", "0"),
        ("THREADS", "1025"),
        ("THREADS", "two"),
        ("THREADS", "1e1"),
        ("QUEUE_IMAGES", "0"),
        ("DEADLINE_SECONDS", "0"),
        ("DEADLINE_SECONDS", "1.5"),
        ("ACCESS_LOG", "yes"),
    ],
)
def test_a_number_that_is_none_is_refused_with_what_is_allowed(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=f"GANSERVE_{name} is .*; a whole number from [01] to [0-9]+ is allowed"):
        from_environment({f"GANSERVE_{name}": text})


def test_an_unknown_form_of_the_log_is_refused() -> None:
    with pytest.raises(SettingsError, match="GANSERVE_LOG_FORMAT is 'xml'; plain or json is allowed"):
        from_environment({"GANSERVE_LOG_FORMAT": "xml"})


@pytest.mark.parametrize(
    "key", ["short", "x" * 15, "a key with spaces in it", "schlüssel-aus-umlauten", "a-key-of-16-char\x07", "tab\tin-the-middle-of-it"]
)
def test_a_key_that_is_short_or_odd_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(SettingsError, match="at least 16 printable ASCII characters and no space") as refused:
        from_environment({"GANSERVE_API_KEY": key})
    assert key not in str(refused.value)


def test_the_key_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"\n{KEY}\n")
    assert from_environment({"GANSERVE_API_KEY_FILE": str(file)}).api_key == KEY
    assert from_environment({"GANSERVE_API_KEY_FILE": str(file), "GANSERVE_API_KEY": ""}).api_key == KEY


def test_a_key_file_that_gives_none_is_refused_and_never_an_open_server(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "short").write_text("short")
    for name, message in (
        ("missing", "cannot be read"),
        ("empty", "is empty"),
        ("binary", "cannot be read"),
        ("", "cannot be read"),
        ("short", "at least 16"),
    ):
        with pytest.raises(SettingsError, match=message):
            from_environment({"GANSERVE_API_KEY_FILE": str(tmp_path / name)})


def test_a_key_and_a_key_file_together_are_refused(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    with pytest.raises(SettingsError, match="both GANSERVE_API_KEY and GANSERVE_API_KEY_FILE are set"):
        from_environment({"GANSERVE_API_KEY": KEY, "GANSERVE_API_KEY_FILE": str(tmp_path / "key")})


@pytest.mark.parametrize(
    ("host", "stays_here"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("[::]", False),
        ("192.168.1.1", False),
        ("10.0.0.1", False),
        ("fe80::1", False),
        ("example.org", False),
        ("localhost.example.org", False),
        ("127.0.0.1.example.org", False),
        ("127.1", False),
        ("", False),
    ],
)
def test_only_loopback_is_open_without_a_key(host: str, stays_here: bool) -> None:
    assert is_loopback(host) is stays_here
    check_exposure(Settings(host=host, api_key=KEY))
    if stays_here:
        check_exposure(Settings(host=host))
    else:
        with pytest.raises(SettingsError, match=r"set GANSERVE_API_KEY .*or listen on 127\.0\.0\.1"):
            check_exposure(Settings(host=host))


def test_jobs_and_data_sets_lie_in_the_state_folder() -> None:
    settings = Settings(state=Path("/var/lib/ganserve"))
    assert (settings.jobs, settings.datasets) == (Path("/var/lib/ganserve/jobs"), Path("/var/lib/ganserve/datasets"))
