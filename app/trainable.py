"""What can be trained here, as GET /architectures tells it."""

from pathlib import Path

from app.errors import NotServed
from app.schemas.training import ArchitectureCard, Architectures, LossCard, PenaltyCard, PresetCard
from training import catalog


def describe_catalog(datasets: Path) -> Architectures:
    """Every architecture, loss, penalty and data set that a config may name.

    Raises:
        NotServed: this process has no trainer.
    """
    try:
        losses, penalties, architectures = catalog.losses(), catalog.penalties(), catalog.architectures()
        known = catalog.datasets(datasets)
    except ImportError as error:
        raise NotServed(f"this process serves only; it has no {error.name}") from error
    return Architectures(
        architectures=[
            ArchitectureCard(
                name=key,
                summary=_summary(kind),
                source=kind.source,
                inputs=list(kind.inputs),
                conditions=list(kind.conditions),
                options=kind.model_json_schema(),
                losses=[loss for loss in losses if loss not in kind.refused],
                penalties=[penalty for penalty in penalties if penalty not in kind.refused],
                recipe=dict(kind.recipe),
                refused=dict(kind.refused),
            )
            for key, kind in architectures.items()
        ],
        losses=[
            LossCard(
                name=key,
                summary=_summary(kind),
                source=kind.source,
                options=kind.model_json_schema(),
                recipe=dict(kind.recipe),
                refused=dict(kind.refused),
            )
            for key, kind in losses.items()
        ],
        penalties=[
            PenaltyCard(name=key, summary=_summary(kind), source=kind.source, options=kind.model_json_schema())
            for key, kind in penalties.items()
        ],
        presets=[PresetCard(name=key, summary=each.summary, config=dict(each.config)) for key, each in catalog.presets().items()],
        extractors=catalog.extractors(),
        datasets=known,
    )


def _summary(kind: type) -> str:
    return (kind.__doc__ or "").strip().split("\n")[0]
