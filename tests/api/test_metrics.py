"""What Prometheus is told, and that it cannot grow without an end."""

from collections.abc import Callable
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from app.metrics import MAX_VERSIONS, Metrics
from app.visits import Visit
from training.contract import Manifest


def samples(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and the values of its labels in the order of their names."""
    families = text_string_to_metric_families(metrics.text().decode())
    return {
        (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
        for family in families
        for sample in family.samples
    }


def visit(version: int, status: int = 200) -> Visit:
    made = Visit(model="digits", version=str(version))
    made.status = status
    made.spend("queue", 0.02)
    return made


def test_a_visit_is_told_by_route_and_status_and_its_times_by_version() -> None:
    metrics = Metrics()
    metrics.visit(visit(1), "/generate", 0.1)
    late = visit(2, 504)
    late.refused = "deadline"
    metrics.visit(late, "/generate", 0.1)
    told = samples(metrics)
    assert told["ganserve_requests_total", "/generate", "200"] == 1
    assert told["ganserve_requests_total", "/generate", "504"] == 1
    assert told["ganserve_phase_seconds_count", "digits", "queue", "1"] == 1
    assert told["ganserve_phase_seconds_bucket", "0.01", "digits", "queue", "1"] == 0
    assert told["ganserve_phase_seconds_bucket", "0.025", "digits", "queue", "1"] == 1
    assert told["ganserve_refused_total", "digits", "deadline", "2"] == 1
    assert told["process_resident_memory_bytes",] > 0


def test_rows_and_the_padding_of_a_batch_are_told(make_version: Callable[..., Manifest], repository: Path) -> None:
    metrics = Metrics()
    metrics.batch(make_version(repository, "tiny"), rows=5, padding=3)
    told = samples(metrics)
    assert told["ganserve_batch_rows_bucket", "4.0", "tiny", "1"] == 0
    assert told["ganserve_batch_rows_bucket", "8.0", "tiny", "1"] == 1
    assert told["ganserve_padding_rows_total", "tiny", "1"] == 3


def test_a_watched_figure_is_read_when_it_is_asked_for_and_can_be_watched_anew() -> None:
    metrics = Metrics()
    waiting = [3]
    metrics.watch("ganserve_queue_images", "Images", lambda: waiting[0])
    waiting[0] = 7
    assert samples(metrics)["ganserve_queue_images",] == 7
    metrics.watch("ganserve_queue_images", "Images", lambda: 9)
    assert samples(metrics)["ganserve_queue_images",] == 9


def test_versions_that_nobody_asks_for_any_more_are_forgotten() -> None:
    metrics = Metrics()
    for version in range(1, MAX_VERSIONS + 50):
        metrics.visit(visit(1), "/generate", 0.1)
        metrics.visit(visit(version), "/generate", 0.1)
    told = {key[-1] for key in samples(metrics) if key[0] == "ganserve_phase_seconds_count"}
    assert len(told) == MAX_VERSIONS
    assert {"1", str(MAX_VERSIONS + 49)} <= told
    assert "2" not in told
