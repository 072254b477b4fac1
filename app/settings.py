"""The only reader of the environment."""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, get_args

from app import choices
from app.choices import Backend, Choice, Choices
from app.logs import LogFormat
from training.contract import UserError
from training.files import digests
from training.files.machine import num_cores

Word = TypeVar("Word", bound=str)
BACKENDS: tuple[Backend, ...] = get_args(Backend)
LOG_FORMATS: tuple[LogFormat, ...] = get_args(LogFormat)
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
    threads: intra-op threads of the engine; what was chosen for this machine when None, else half the cores, since the event loop, the
        encoders and a trainer need theirs, and threads that wait for a taken core cost more than they bring. Another number may mean
        other last bits.
    backend: how every module is run that can be run so; when None, as was chosen for it on this machine, else as it was published.
    choices: those of this machine.
    allowed_hosts: names besides loopback's that a request's Host header may carry.
    api_key: when set, every route but the probes wants it as a bearer key.
    queue_images: how many may wait for the engine.
    queue_megabytes: how much the bodies of all requests together may hold.
    deadline_seconds: how long a request may take, once its body is here; for ever when None.
    log_format: a line to read, or a JSON object a line.
    access_log: whether each request is told of.
    model_memory_megabytes: how much the weights of loaded models may take; no limit when None.
    pins: models that are loaded first and never let go.
    database_url: of the index of jobs, PostgreSQL for servers that share a state folder; SQLite in the state folder when None.
    node: this server's name among those that share a database.
    jobs_at_once: how many jobs train at once; one a GPU, or one on a CPU, when None.
    training_memory_megabytes: what one job's worker may take; three quarters of the machine's, shared by all of them, when None.
    training_gpu_percent: of a GPU's memory, what its worker may take; the models that are served have the rest.
    keep_versions: how many of a model's newest versions stay when one more is published, beside those that an alias names; all when None.
    run_jobs: whether this process starts workers; a command that only asks does not.
    """

    models: tuple[Path, ...] = (Path("models"),)
    state: Path = Path("state")
    device: str = "auto"
    threads: int | None = None
    backend: Backend | None = None
    choices: Choices = field(default_factory=Choices)
    host: str = "127.0.0.1"
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    api_key: str | None = None
    queue_images: int = 4096
    queue_megabytes: int = 512
    deadline_seconds: float | None = 60
    log_format: LogFormat = "plain"
    access_log: bool = False
    model_memory_megabytes: int | None = None
    pins: tuple[str, ...] = ()
    database_url: str | None = None
    node: str = field(default_factory=socket.gethostname)
    jobs_at_once: int | None = None
    training_memory_megabytes: int | None = None
    training_gpu_percent: int = 50
    keep_versions: int | None = None
    run_jobs: bool = True

    @property
    def engine_threads(self) -> int:
        return self.threads or self.choices.threads or max(1, num_cores() // 2)

    def choice(self, model: str, module: str) -> Choice:
        """How a module of a model is to be run."""
        return self.choices.of(model, module) if self.backend is None else Choice(backend=self.backend)

    @property
    def model_memory_bytes(self) -> int | None:
        return None if self.model_memory_megabytes is None else self.model_memory_megabytes * 10**6

    @property
    def datasets(self) -> Path:
        return self.state / "datasets"

    @property
    def weights(self) -> Path:
        """Files of pretrained networks that were put there by hand."""
        return self.state / "weights"

    @property
    def imports(self) -> Path:
        """Archives that were sent, until they are data sets."""
        return self.state / "imports"

    @property
    def digests(self) -> Path:
        """What was published or confirmed here; no other model is loaded."""
        return self.state / digests.FOLDER

    @property
    def jobs(self) -> Path:
        return self.state / "jobs"

    @property
    def index_url(self) -> str:
        """The database of the index of jobs."""
        return self.database_url or f"sqlite:///{self.state / 'index.sqlite'}"


def from_environment(environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from GANSERVE_MODELS (separated as in PATH), GANSERVE_STATE, _DEVICE, _THREADS, _BACKEND, _HOST, _PORT, _ALLOWED_HOSTS
    (separated by commas), _API_KEY or _API_KEY_FILE, _QUEUE_IMAGES, _QUEUE_MEGABYTES, _DEADLINE_SECONDS, _LOG_FORMAT, _ACCESS_LOG (0, 1),
    _MODEL_MEMORY_MEGABYTES, _PIN (names, separated by commas), _DATABASE_URL, _NODE, _JOBS_AT_ONCE, _TRAINING_MEMORY_MEGABYTES,
    _TRAINING_GPU_PERCENT, _KEEP_VERSIONS.

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
        backend=_one_of(given, "GANSERVE_BACKEND", BACKENDS),
        host=given.get("GANSERVE_HOST") or default.host,
        port=default.port if port is None else port,
        allowed_hosts=tuple(host.lower() for host in _words(given, "GANSERVE_ALLOWED_HOSTS")),
        api_key=_api_key(given),
        queue_images=_number(given, "GANSERVE_QUEUE_IMAGES", 1, 10**6) or default.queue_images,
        queue_megabytes=_number(given, "GANSERVE_QUEUE_MEGABYTES", 1, 10**6) or default.queue_megabytes,
        deadline_seconds=_number(given, "GANSERVE_DEADLINE_SECONDS", 1, 86400) or default.deadline_seconds,
        log_format=_one_of(given, "GANSERVE_LOG_FORMAT", LOG_FORMATS) or default.log_format,
        access_log=bool(_number(given, "GANSERVE_ACCESS_LOG", 0, 1)),
        model_memory_megabytes=_number(given, "GANSERVE_MODEL_MEMORY_MEGABYTES", 1, 10**6),
        pins=_words(given, "GANSERVE_PIN"),
        database_url=given.get("GANSERVE_DATABASE_URL") or None,
        node=given.get("GANSERVE_NODE") or default.node,
        jobs_at_once=_number(given, "GANSERVE_JOBS_AT_ONCE", 1, 64),
        training_memory_megabytes=_number(given, "GANSERVE_TRAINING_MEMORY_MEGABYTES", 256, 10**7),
        training_gpu_percent=_number(given, "GANSERVE_TRAINING_GPU_PERCENT", 1, 99) or default.training_gpu_percent,
        keep_versions=_number(given, "GANSERVE_KEEP_VERSIONS", 1, 10**6),
    )


def with_choices(settings: Settings) -> Settings:
    """With what was chosen for this machine, which lies in its state folder.

    Raises:
        SettingsError: the file cannot be read.
    """
    try:
        return replace(settings, choices=choices.read(settings.state))
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).splitlines()[0]
        raise SettingsError(
            f"{settings.state / choices.FILE} cannot be read: {reason}; make it anew with `ganserve tune`, or remove it with"
            " `ganserve tune --reset`"
        ) from error


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


def _words(given: Mapping[str, str], name: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in given.get(name, "").split(",") if word.strip())


def _number(given: Mapping[str, str], name: str, low: int, high: int) -> int | None:
    text = given.get(name)
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
        raise SettingsError(f"{name} is {text!r}; a whole number from {low} to {high} is allowed")
    return int(text)


def _one_of(given: Mapping[str, str], name: str, words: Sequence[Word]) -> Word | None:
    text = given.get(name)
    for word in words:
        if text == word:
            return word
    if text:
        raise SettingsError(f"{name} is {text!r}; {' or '.join(words)} is allowed")
    return None


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
