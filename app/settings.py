"""The only reader of the environment."""

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from training.contract import UserError
from training.files.machine import num_cores

API_KEY, API_KEY_FILE = "GANSERVE_API_KEY", "GANSERVE_API_KEY_FILE"
MIN_KEY_CHARACTERS = 16


class SettingsError(UserError):
    """A setting that cannot be used; the message says what was given and what is allowed."""


@dataclass(frozen=True)
class Settings:
    """How one server runs.

    models: repositories; the first is written to, the others are only read.
    state: what must outlive the process: jobs and data sets.
    device: auto, cpu, cuda, cuda:1, mps.
    threads: intra-op threads of the engine; half the cores when None, since the event loop, the encoders and a trainer need theirs, and
        threads that wait for a taken core cost more than they bring. Another number may mean other last bits.
    allowed_hosts: names besides loopback's that a request's Host header may carry.
    api_key: when set, every route but the probes wants it as a bearer key.
    run_jobs: whether this process starts workers; a command that only asks does not.
    """

    models: tuple[Path, ...] = (Path("models"),)
    state: Path = Path("state")
    device: str = "auto"
    threads: int | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = None
    run_jobs: bool = True

    @property
    def engine_threads(self) -> int:
        return self.threads or max(1, num_cores() // 2)

    @property
    def datasets(self) -> Path:
        return self.state / "datasets"

    @property
    def weights(self) -> Path:
        """Files of pretrained networks that were put there by hand."""
        return self.state / "weights"

    @property
    def jobs(self) -> Path:
        return self.state / "jobs"


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from GANSERVE_MODELS (separated as in PATH), GANSERVE_STATE, _DEVICE, _THREADS, _HOST, _PORT, _ALLOWED_HOSTS (separated
    by commas), _API_KEY or _API_KEY_FILE.

    Raises:
        SettingsError: a value that cannot be used.
    """
    given = os.environ if environment is None else environment
    default = Settings()
    port = _number(given, "GANSERVE_PORT", 0, 65535)
    models = tuple(Path(part) for part in given.get("GANSERVE_MODELS", "").split(os.pathsep) if part)
    return Settings(
        models=models or default.models,
        state=Path(given.get("GANSERVE_STATE") or default.state),
        device=given.get("GANSERVE_DEVICE") or default.device,
        threads=_number(given, "GANSERVE_THREADS", 1, 1024),
        host=given.get("GANSERVE_HOST") or default.host,
        port=default.port if port is None else port,
        allowed_hosts=tuple(host.strip().lower() for host in given.get("GANSERVE_ALLOWED_HOSTS", "").split(",") if host.strip()),
        api_key=_api_key(given),
    )


def check_exposure(settings: Settings) -> None:
    """Refuse an address that others can reach while there is no key.

    Raises:
        SettingsError: the one sentence to print.
    """
    if settings.api_key is None and not is_loopback(settings.host):
        raise SettingsError(
            f"{settings.host} can be reached from other machines, and no key is set: set {API_KEY} (or {API_KEY_FILE})"
            f" to at least {MIN_KEY_CHARACTERS} characters, or listen on 127.0.0.1"
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on stays on this machine; of names, only localhost does."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def _number(given: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = given.get(name)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise SettingsError(f"{name} is {text!r}; a whole number from {low} to {high} is allowed")
    return int(text)


def _api_key(given: Mapping[str, str]) -> str | None:
    key, file = given.get(API_KEY), given.get(API_KEY_FILE)
    if key and file:
        raise SettingsError(f"both {API_KEY} and {API_KEY_FILE} are set; set one")
    if file:
        try:
            key = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"{API_KEY_FILE} names {file}, which cannot be read: {error}") from error
        if not key:
            raise SettingsError(f"{API_KEY_FILE} names {file}, which is empty")
    if key is not None and key != "" and (len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key):
        raise SettingsError(f"the key must have at least {MIN_KEY_CHARACTERS} printable ASCII characters and no space")
    return key or None
