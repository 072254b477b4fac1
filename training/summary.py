"""A run on one picture: its curves and how its samples came about, drawn from what lies in the run directory alone.

Games follow one another, so they share each panel: a term keeps its colour, and a line stands where the next game begins. The star
is at the evaluation that decides what is published: the highest PSNR where it is measured, else the lowest KID.
"""

import io
import logging
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from matplotlib.gridspec import GridSpec
from matplotlib.ticker import FuncFormatter, MaxNLocator
from numpy.typing import NDArray
from PIL import Image

from training.contract import JobStatus, Metrics, TrainConfig
from training.files import runs
from training.files.directories import write_atomically

_log = logging.getLogger(__name__)
DOTS_PER_INCH = 100
# inches:
WIDTH, LEFT, RIGHT, TOP, BOTTOM = 14.0, 0.7, 0.4, 0.3, 0.3
NAME_HEIGHT, LINE_HEIGHT, PANEL_HEIGHT, GAP, BETWEEN = 0.38, 0.22, 2.1, 0.7, 0.75  # GAP is above a row, for its titles; BETWEEN columns
COLUMNS = 3
MAX_GRIDS, TILES = 6, 4  # grids of samples, and how many images of a grid a side
GRID_LINE = 2  # black pixels between two images of a grid
SMALLEST_TILE = 8  # pixels
FAR = 3.0  # values that widen a panel's range so many times are cut off, and named
WIDE = 20.0  # positive values of which the largest is so many times the smallest are drawn on a logarithmic scale
LEGEND = (1.02, 0.97)  # its lower right corner, beside the title
FONT = "DejaVu Sans"  # the one that matplotlib brings

INK, FAINT, WARNING = "#22272e", "#8a929c", "#b3261e"
BLUE, ORANGE, GREEN, PURPLE = "#1f6fb5", "#d9731a", "#2f8f5b", "#7d55a8"


@dataclass(frozen=True)
class _Curve:
    """One measured value over the run; of a term that several games have, the games' own curves."""

    name: str  # without its game
    images: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class _Panel:
    """Some curves on one pair of axes; `terms` are (name of the value, what the legend calls it, colour)."""

    title: str
    terms: tuple[tuple[str, str, str], ...]
    bottom: float | None = None
    top: float | None = None
    level: float | None = None  # where a faint line stands


PANELS = (
    _Panel(
        "Losses",
        (("generator_loss", "generator", BLUE), ("discriminator_loss", "discriminator", ORANGE), ("penalty", "penalty", GREEN)),
    ),
    _Panel("Reconstruction", (("reconstruction_loss", "beside the game", PURPLE), ("warmup_loss", "warm-up", GREEN))),
    _Panel(
        "Probability of real",
        (
            ("probability_real", "real", ORANGE),
            ("probability_generated", "generated", BLUE),
            ("probability_generated_after", "after its step", FAINT),
        ),
        bottom=-0.03,
        top=1.03,
        level=0.5,
    ),
    _Panel(
        "Score",
        (("score_real", "real", ORANGE), ("score_generated", "generated", BLUE), ("score_generated_after", "after its step", FAINT)),
    ),
)


def draw(folder: Path) -> None:
    """Write `summary.png` into a run directory, in place of the one that is there. It takes about a second.

    Raises:
        OSError, ValueError: the directory is no run directory, or a document or a grid of samples in it is damaged.
    """
    with mpl.rc_context():
        mpl.rcdefaults()  # what a user has set for other pictures says nothing of this one
        mpl.rcParams.update({"font.family": FONT, "font.size": 9, "text.parse_math": False, "text.color": INK, "axes.edgecolor": FAINT})
        figure, drawn = figure_of(folder), io.BytesIO()
        FigureCanvasAgg(figure)
        figure.savefig(drawn, format="png", metadata={"Software": None})  # the version of matplotlib is not the run's
    write_atomically(folder / runs.SUMMARY, drawn.getvalue())


def figure_of(folder: Path) -> Figure:
    """What `draw` draws; for what it raises see there."""
    config, status, lines = runs.read_config(folder), runs.read_status(folder), runs.read_metrics(folder)
    samples = [runs.sample_path(folder, images) for images in runs.sample_images(folder, MAX_GRIDS)]
    curves = _curves(lines)
    drawers = _loss_panels(curves) + _evaluation_panels(_evaluations(lines)) or [_nothing_measured]
    rows, words = -(-len(drawers) // COLUMNS), _words(config, status)
    head = TOP + NAME_HEIGHT + LINE_HEIGHT * len(words) - 0.15
    picture_height = (WIDTH - LEFT - RIGHT) / MAX_GRIDS
    below = BOTTOM + (picture_height + GAP if samples else 0)
    figure = Figure(figsize=(WIDTH, head + rows * (GAP + PANEL_HEIGHT) + below), dpi=DOTS_PER_INCH, facecolor="white")
    _write_head(figure, config, words)
    grid = _grid(figure, rows, COLUMNS, (head + GAP, below + 0.1), BETWEEN)
    games = _beginnings(lines)
    for index, drawer in enumerate(drawers):
        axes = figure.add_subplot(grid[index // COLUMNS, index % COLUMNS])
        drawer(axes)
        if drawer is not _nothing_measured:
            _finish(axes, config.total_images, games)
    if samples:
        _draw_samples(figure, samples, _grid(figure, 1, MAX_GRIDS, (figure.get_figheight() - BOTTOM - picture_height, BOTTOM), 0.12))
    return figure


def _grid(figure: Figure, rows: int, columns: int, ends: tuple[float, float], between: float) -> GridSpec:
    """Places between the inches above and below that `ends` leaves, GAP above each row but the first, `between` the columns."""
    width, height = figure.get_size_inches()
    each = (width - LEFT - RIGHT - between * (columns - 1)) / columns
    tall = (height - sum(ends) - GAP * (rows - 1)) / rows
    borders = {"left": LEFT / width, "right": 1 - RIGHT / width, "top": 1 - ends[0] / height, "bottom": ends[1] / height}
    return GridSpec(rows, columns, figure, wspace=between / each, hspace=GAP / tall, **borders)


# --- what was measured --------------------------------------------------------------------------------------------------------


def _curves(lines: Sequence[Metrics]) -> list[_Curve]:
    """Of the losses and scores, in the order in which they were first measured."""
    return _collected([(line.images, line.losses) for line in lines])


def _evaluations(lines: Sequence[Metrics]) -> dict[str, _Curve]:
    return {curve.name: curve for curve in _collected([(line.images, line.evaluation) for line in lines])}


def _collected(lines: Sequence[tuple[int, dict[str, float]]]) -> list[_Curve]:
    found: dict[str, list[tuple[int, float]]] = {}
    for images, values in lines:
        for name, value in values.items():
            found.setdefault(name, []).append((images, value))
    return [
        _Curve(name.rpartition("/")[2], tuple(images for images, _ in points), tuple(value for _, value in points))
        for name, points in found.items()
    ]


def _beginnings(lines: Sequence[Metrics]) -> dict[str, int]:
    """Images at the line of metrics before each game's first; nothing where there is one game."""
    found: dict[str, int] = {}
    before = 0
    for line in lines:
        for name in line.losses:
            if "/" in name:
                found.setdefault(name.rpartition("/")[0], before)
        before = line.images
    return found


def _best(evaluations: dict[str, _Curve]) -> tuple[str, int] | None:
    """The measure that decides which state is published, as in `Evaluator.chosen_by`, and the state's images; None without one."""
    if "psnr" in evaluations:
        curve = evaluations["psnr"]
        return curve.name, curve.images[int(np.argmax(curve.values))]
    for name, curve in evaluations.items():
        if name.startswith("kid_") and not name.endswith(("_low", "_high")):
            return name, curve.images[int(np.argmin(curve.values))]
    return None


# --- the panels ---------------------------------------------------------------------------------------------------------------

_Drawer = Callable[[Axes], None]


def _loss_panels(curves: Sequence[_Curve]) -> list[_Drawer]:
    there = {curve.name for curve in curves}
    return [_loss_drawer(panel, curves) for panel in PANELS if there & {name for name, _, _ in panel.terms}]


def _loss_drawer(panel: _Panel, curves: Sequence[_Curve]) -> _Drawer:
    def drawer(axes: Axes) -> None:
        axes.set_title(panel.title)
        if panel.level is not None:
            axes.axhline(panel.level, color=FAINT, linewidth=0.7, linestyle=":")
        shown = []
        for name, label, colour in panel.terms:
            games = [curve for curve in curves if curve.name == name]
            for index, curve in enumerate(games):
                style = ":" if colour == FAINT else "-"
                axes.plot(curve.images, curve.values, color=colour, linewidth=1.1, linestyle=style, label="" if index else label)
            shown += games
        _limit(axes, [value for curve in shown for value in curve.values], panel)
        axes.legend(loc="lower right", bbox_to_anchor=LEGEND, ncols=3, frameon=False, fontsize=8, handlelength=1.2, columnspacing=1.0)

    return drawer


def _limit(axes: Axes, values: Sequence[float], panel: _Panel) -> None:
    """The range of a panel's values; a few that lie far off are cut off, and the panel says so."""
    if panel.bottom is not None:
        axes.set_ylim(panel.bottom, panel.top)
        return
    low, high = np.quantile(values, 0.01), np.quantile(values, 0.99)
    if max(values) - min(values) > FAR * (high - low) > 0:
        margin = 0.08 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        outside = sum(not low - margin <= value <= high + margin for value in values)
        text = f"{outside} of {len(values)} are outside, from {min(values):.3g} to {max(values):.3g}"
        axes.text(0.99, 0.96, text, transform=axes.transAxes, ha="right", va="top", color=FAINT, fontsize=7.5)


def _evaluation_panels(evaluations: dict[str, _Curve]) -> list[_Drawer]:
    """A panel for each measure; its interval and its baseline belong to it."""
    best = _best(evaluations)
    beside = {f"{name}{end}" for name in evaluations for end in ("_low", "_high", "_baseline", "_error")} | {"num_evaluated"}
    return [_evaluation_drawer(name, evaluations, best) for name in evaluations if name not in beside]


def _band(name: str, evaluations: dict[str, _Curve]) -> tuple[list[float], list[float]] | None:
    """Where a measure may really be: its interval, or its standard error to either side."""
    low, high, error = (evaluations.get(f"{name}{end}") for end in ("_low", "_high", "_error"))
    if low is not None and high is not None:
        return list(low.values), list(high.values)
    if error is None:
        return None
    both = list(zip(evaluations[name].values, error.values, strict=True))
    return [value - wide for value, wide in both], [value + wide for value, wide in both]


def _evaluation_drawer(name: str, evaluations: dict[str, _Curve], best: tuple[str, int] | None) -> _Drawer:
    def drawer(axes: Axes) -> None:
        curve = evaluations[name]
        is_wide = max(curve.values) > WIDE * min(curve.values) > 0
        axes.set_title(f"{name} (log)" if is_wide else name)
        baseline, band = evaluations.get(f"{name}_baseline"), _band(name, evaluations)
        if band is not None:
            axes.fill_between(curve.images, *band, color=BLUE, alpha=0.18, linewidth=0)
        if baseline is not None:
            axes.axhline(baseline.values[-1], color=FAINT, linewidth=1.1, linestyle="--", label="without the model")
        axes.plot(curve.images, curve.values, color=BLUE, linewidth=1.2, marker="o", markersize=3)
        if best is not None and best[1] in curve.images:
            value = curve.values[curve.images.index(best[1])]
            label = f"best: {value:.4g} at {best[1]:,}" if best[0] == name else f"at the best: {value:.4g}"
            axes.plot([best[1]], [value], color=ORANGE, marker="*", markersize=12, linestyle="none", label=label, clip_on=False, zorder=3)
        if is_wide:
            axes.set_yscale("log", nonpositive="clip")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.set_ylim(0.6 * min(curve.values), 1.6 * max(curve.values))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower right", bbox_to_anchor=LEGEND, ncols=2, frameon=False, fontsize=8, handlelength=1.4, columnspacing=1.0)

    return drawer


def _nothing_measured(axes: Axes) -> None:
    axes.set_axis_off()
    axes.text(0.0, 1.0, "Nothing is measured yet.", va="top", color=FAINT, fontsize=11)


def _finish(axes: Axes, total_images: int, games: dict[str, int]) -> None:
    axes.set_title(axes.get_title(), loc="left", fontweight="bold", fontsize=9.5)
    axes.set_title("")
    axes.set_xlim(0, total_images)
    axes.set_xlabel("images", color=FAINT, fontsize=7.5, labelpad=1)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda images, _: _short(images)))
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=FAINT, alpha=0.2, linewidth=0.6)
    axes.set_axisbelow(True)
    for key, begin in games.items():
        axes.axvline(begin, color=FAINT, linewidth=0.8)
        axes.text(begin, 0.99, f" {key}", transform=axes.get_xaxis_transform(), va="top", color=FAINT, fontsize=7.5)


def _short(images: float) -> str:
    """`50k`, `1.5M`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if images >= size:
            return f"{images / size:g}{letter}"
    return f"{images:g}"


# --- words --------------------------------------------------------------------------------------------------------------------


def _words(config: TrainConfig, status: JobStatus) -> list[tuple[str, str]]:
    """(line, colour) below the name."""
    seen = f"{status.progress.images:,} of {config.total_images:,} images"
    state = f"{status.state}: {status.message}" if status.message else status.state
    colour = WARNING if status.state == "failed" else INK
    facts = [(f"{config.architecture} on {config.dataset} · loss {config.loss} · {seen}", INK), (state, colour)]
    facts += [(finding.message, WARNING) for finding in status.findings]
    return [(line, tint) for text, tint in facts for line in textwrap.wrap(_printable(text), 170)]


def _printable(text: str) -> str:
    """A message may hold what the font has no sign for."""
    signs = get_font(findfont(FONT)).get_charmap()
    return "".join(sign if ord(sign) in signs else "?" for sign in " ".join(text.split()))


def _write_head(figure: Figure, config: TrainConfig, words: Sequence[tuple[str, str]]) -> None:
    height = figure.get_figheight()
    figure.text(LEFT / WIDTH, 1 - TOP / height, config.model_name, fontsize=15, fontweight="bold", va="top")
    for index, (line, colour) in enumerate(words):
        figure.text(LEFT / WIDTH, 1 - (TOP + NAME_HEIGHT + LINE_HEIGHT * index) / height, line, fontsize=9.5, color=colour, va="top")


# --- samples ------------------------------------------------------------------------------------------------------------------


def _draw_samples(figure: Figure, paths: Sequence[Path], grid: GridSpec) -> None:
    for index, path in enumerate(paths):
        try:
            corner = _corner(path)
        except (OSError, SyntaxError) as error:  # as Pillow says that a file is damaged
            _log.warning("the samples %s cannot be read and are left out of the summary: %s", path.name, error)
            continue
        axes = figure.add_subplot(grid[0, index])
        axes.imshow(corner, aspect="equal")
        axes.set_anchor("N")
        axes.set_axis_off()
        axes.set_title(f"{int(path.stem):,} images", fontsize=9)


def _corner(path: Path) -> NDArray[np.uint8]:
    """(height, width, 3): the upper left of a grid of samples, near square."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    height, width = (_step(pixels.max(axis=axis)) for axis in ((1, 2), (0, 2)))
    columns = max(1, round(TILES * height / width))
    return pixels[: TILES * height + GRID_LINE, : columns * width + GRID_LINE]


def _step(brightest: NDArray[np.uint8]) -> int:
    """Pixels from one image of a grid to the next, along the axis whose brightest values these are; the grid's lines are black."""
    length = len(brightest) - GRID_LINE
    for step in range(SMALLEST_TILE + GRID_LINE, length // 2 + 1):
        if length % step == 0 and not any(brightest[line::step].any() for line in range(GRID_LINE)):
            return step
    return max(1, length)
