"""What /metrics tells, in Prometheus' words. Every server has figures of its own, and their number is bounded."""

from collections import OrderedDict
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics
from prometheus_client.exposition import CONTENT_TYPE_LATEST as MEDIA_TYPE
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics import MetricWrapperBase

from app.visits import Visit
from training.contract import Manifest

__all__ = ["MEDIA_TYPE", "Metrics"]

MAX_VERSIONS = 32  # that are told of, those that were asked last: versions are published for as long as a server runs, and each is 10 kB
disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each, which no rate needs
_ROWS = (1, 2, 4, 8, 16, 32, 64)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_VERSION = ("model", "version")


class Metrics:
    """The figures of one server. Used on one event loop."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("ganserve_requests", "Requests by route and status", ("route", "status"), registry=registry)
        self._request_seconds = Histogram(
            "ganserve_request_seconds", "Time from a request's head to its answer's end", ("route",), buckets=_SECONDS, registry=registry
        )
        self._phase_seconds = Histogram(
            "ganserve_phase_seconds",
            "Time of a request in each phase: decode, prepare, queue, run, encode",
            ("phase", *_VERSION),
            buckets=_SECONDS,
            registry=registry,
        )
        self._batch_rows = Histogram("ganserve_batch_rows", "Rows of a batch, without padding", _VERSION, buckets=_ROWS, registry=registry)
        self._padding_rows = Counter("ganserve_padding_rows", "Rows that filled batches up", _VERSION, registry=registry)
        self._refused = Counter(
            "ganserve_refused",
            "Requests that went without their answer: images, bodies, administration (no room), stopping, deadline, left, slow-body",
            ("reason", *_VERSION),
            registry=registry,
        )
        self._by_version: tuple[MetricWrapperBase, ...] = (self._phase_seconds, self._batch_rows, self._padding_rows, self._refused)
        self._watched: dict[str, Gauge] = {}
        self._versions: OrderedDict[tuple[str, str], None] = OrderedDict()

    def watch(self, name: str, description: str, value: Callable[[], float]) -> None:
        """A figure that is read when it is asked for; a later value takes the place of the one before."""
        if name not in self._watched:
            self._watched[name] = Gauge(name, description, registry=self._registry)
        self._watched[name].set_function(value)

    def batch(self, manifest: Manifest, rows: int, padding: int) -> None:
        """A batch of a version has run."""
        model, version = manifest.name, str(manifest.version)
        self._keep(model, version)
        self._batch_rows.labels(model, version).observe(rows)
        self._padding_rows.labels(model, version).inc(padding)

    def visit(self, visit: Visit, route: str, seconds: float) -> None:
        """A request has ended."""
        self._requests.labels(route, visit.status).inc()
        self._request_seconds.labels(route).observe(seconds)
        self._keep(visit.model, visit.version)
        for phase, spent in visit.seconds.items():
            self._phase_seconds.labels(phase, visit.model, visit.version).observe(spent)
        if visit.refused is not None:
            self._refused.labels(visit.refused, visit.model, visit.version).inc()

    def text(self) -> bytes:
        """All of it, as MEDIA_TYPE."""
        return generate_latest(self._registry)

    def _keep(self, model: str, version: str) -> None:
        self._versions[model, version] = None
        self._versions.move_to_end((model, version))
        if len(self._versions) > MAX_VERSIONS:
            oldest, _ = self._versions.popitem(last=False)
            for metric in self._by_version:
                metric.remove_by_labels(dict(zip(_VERSION, oldest, strict=True)))
