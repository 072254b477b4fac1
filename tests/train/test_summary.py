"""A run on one picture: what is drawn of real run directories."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from training import summary
from training.contract import Metrics, TrainConfig
from training.export import save_grid
from training.files import runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run directory as it is before the run begins."""
    config = TrainConfig(name="seen", architecture="dcgan", dataset="tiny", total_images=1000, batch_size=10)
    runs.create(tmp_path / "run", config, "20261122-104500-000000000000")
    return tmp_path / "run"


def add_losses(folder: Path, images: range, **values: float) -> None:
    for seen in images:
        runs.append_metrics(folder, Metrics(images=seen, seconds=1.0, losses={name.replace("__", "/"): x for name, x in values.items()}))


def add_evaluation(folder: Path, images: int, **values: float) -> None:
    runs.append_metrics(folder, Metrics(images=images, seconds=1.0, evaluation=values))


def add_samples(folder: Path, images: int, shape: tuple[int, int, int] = (3, 16, 16), count: int = 64) -> None:
    random = torch.Generator().manual_seed(images)
    save_grid(runs.sample_path(folder, images), torch.rand(count, *shape, generator=random) * 1.8 - 0.9)  # none is black


def panels(figure: Figure) -> dict[str, Axes]:
    """Axes by their titles."""
    return {axes.get_title(loc="left") or axes.get_title(): axes for axes in figure.axes}


def line(axes: Axes, label: str) -> tuple[list[float], list[float]]:
    (found,) = [each for each in axes.get_lines() if str(each.get_label()).startswith(label)]
    return list(map(float, found.get_xdata())), list(map(float, found.get_ydata()))


def words(figure: Figure) -> str:
    return "\n".join(text.get_text() for text in figure.texts)


def test_a_run_that_has_not_begun_says_so(folder: Path) -> None:
    summary.draw(folder)
    with Image.open(folder / "summary.png") as picture:
        assert picture.format == "PNG"
        assert picture.width == 1400
    figure = summary.figure_of(folder)
    assert [text.get_text() for axes in figure.axes for text in axes.texts] == ["Nothing is measured yet."]
    assert words(figure) == "seen\ndcgan on tiny · loss non-saturating · 0 of 1,000 images\nqueued"


def test_the_head_says_how_far_it_is_and_how_it_ended(folder: Path) -> None:
    status = runs.read_status(folder)
    message = "the loss cost $1 and then $2: \N{SNOWMAN} \U0001f40c " + "word " * 60
    progress = status.progress.model_copy(update={"images": 420})
    runs.write_status(folder, status.model_copy(update={"state": "failed", "message": message, "progress": progress}))
    summary.draw(folder)  # no sign that is missing in the font, and nothing that is taken for a formula
    figure = summary.figure_of(folder)
    assert "420 of 1,000 images" in words(figure)
    assert " ".join(words(figure).split("\n")[2:]) == f"failed: {message}".strip().replace("\U0001f40c", "?")
    assert {text.get_color() for text in figure.texts[2:]} == {summary.WARNING}


def test_losses_and_scores_are_drawn_as_they_were_measured(folder: Path) -> None:
    for images, value in ((10, 0.5), (20, 0.75), (30, 0.25)):
        add_losses(folder, range(images, images + 1), generator_loss=value, discriminator_loss=1.0, penalty=0.125, score_real=value)
        add_losses(folder, range(images, images + 1), probability_real=value, reconstruction_loss=2.0)
    shown = panels(summary.figure_of(folder))
    assert list(shown) == ["Losses", "Reconstruction", "Probability of real", "Score"]
    assert line(shown["Losses"], "generator") == ([10, 20, 30], [0.5, 0.75, 0.25])
    assert line(shown["Losses"], "discriminator")[1] == [1.0] * 3
    assert line(shown["Losses"], "penalty")[1] == [0.125] * 3
    assert line(shown["Reconstruction"], "beside the game")[1] == [2.0] * 3
    assert line(shown["Probability of real"], "real")[1] == [0.5, 0.75, 0.25]
    assert line(shown["Score"], "real")[1] == [0.5, 0.75, 0.25]
    assert all(axes.get_xlim() == (0, 1000) for axes in shown.values())


def test_games_share_a_panel_and_a_line_stands_where_the_next_begins(folder: Path) -> None:
    add_losses(folder, range(10, 310, 10), **{"level-8__generator_loss": 1.0})
    add_losses(folder, range(310, 500, 10), **{"level-16__generator_loss": 2.0})
    axes = panels(summary.figure_of(folder))["Losses"]
    first, second, *borders = axes.get_lines()
    assert (set(first.get_ydata()), set(second.get_ydata())) == ({1.0}, {2.0})
    assert first.get_color() == second.get_color()
    assert [border.get_xdata()[0] for border in borders] == [0, 300]
    assert [text.get_text().strip() for text in axes.texts] == ["level-8", "level-16"]
    assert axes.get_legend() is not None
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["generator"]


def test_the_star_is_at_the_lowest_kid_with_its_interval(folder: Path) -> None:
    for images, kid, fd in ((250, 0.5, 4.0), (500, 0.25, 5.0), (750, 0.375, 3.0)):
        add_evaluation(folder, images, kid_net=kid, kid_net_low=kid - 0.125, kid_net_high=kid + 0.125, fd_net=fd)
    shown = panels(summary.figure_of(folder))
    assert list(shown) == ["kid_net", "fd_net"]
    assert line(shown["kid_net"], "best: 0.25 at 500") == ([500], [0.25])
    assert line(shown["fd_net"], "at the best: 5") == ([500], [5.0])  # one state is published, not one for each measure
    (band,) = shown["kid_net"].collections
    assert band.get_datalim(shown["kid_net"].transData).y0 == 0.125
    assert band.get_datalim(shown["kid_net"].transData).y1 == 0.625


def test_where_there_is_a_right_answer_the_star_is_at_the_highest_psnr_above_its_baseline(folder: Path) -> None:
    for images, psnr in ((250, 20.0), (500, 24.0), (750, 22.0)):
        add_evaluation(folder, images, psnr=psnr, ssim=psnr / 32, psnr_baseline=18.0, ssim_baseline=0.5)
    shown = panels(summary.figure_of(folder))
    assert list(shown) == ["psnr", "ssim"]
    assert line(shown["psnr"], "best: 24 at 500") == ([500], [24.0])
    assert line(shown["ssim"], "at the best: 0.75") == ([500], [0.75])
    assert set(line(shown["psnr"], "without the model")[1]) == {18.0}
    assert set(line(shown["ssim"], "without the model")[1]) == {0.5}


def test_values_of_many_sizes_get_a_logarithmic_scale(folder: Path) -> None:
    for images, fd in ((250, 400.0), (500, 20.0), (750, 2.0)):
        add_evaluation(folder, images, fd_net=fd)
    axes = panels(summary.figure_of(folder))["fd_net (log)"]
    assert axes.get_yscale() == "log"
    assert axes.get_ylim()[0] < 2.0
    assert axes.get_ylim()[1] > 400.0
    summary.draw(folder)


def test_values_far_off_are_cut_off_and_named(folder: Path) -> None:
    add_losses(folder, range(1, 2), generator_loss=5000.0)
    for images in range(2, 300):
        add_losses(folder, range(images, images + 1), generator_loss=1 + images % 2)
    axes = panels(summary.figure_of(folder))["Losses"]
    assert axes.get_ylim()[1] < 3
    assert axes.texts[0].get_text() == "1 of 299 are outside, from 1 to 5e+03"


def test_six_grids_of_samples_are_shown_from_the_first_to_the_last(folder: Path) -> None:
    for images in range(100, 1000, 100):
        add_samples(folder, images)
    figure = summary.figure_of(folder)
    assert [axes.get_title() for axes in figure.axes][1:] == [f"{images} images" for images in (100, 300, 400, 600, 700, 900)]
    (first,) = figure.axes[1].get_images()
    with Image.open(runs.sample_path(folder, 100)) as grid:
        kept = np.asarray(grid)[:74, :74]  # 4 of 16 pixels, and lines of 2 between
    np.testing.assert_array_equal(first.get_array(), kept)


@pytest.mark.parametrize(
    ("shape", "count", "size"),
    [((1, 28, 28), 64, (122, 122)), ((3, 16, 48), 16, (74, 52)), ((3, 96, 288), 16, (394, 292)), ((3, 16, 16), 2, (20, 38))],
)
def test_a_grid_is_cropped_between_two_images(folder: Path, shape: tuple[int, int, int], count: int, size: tuple[int, int]) -> None:
    add_samples(folder, 100, shape, count)
    (picture,) = summary.figure_of(folder).axes[1].get_images()
    assert picture.get_array().shape == (*size, 3)


def test_a_grid_of_black_images_is_drawn(folder: Path) -> None:
    save_grid(runs.sample_path(folder, 100), torch.full((64, 1, 16, 16), -1.0))
    summary.draw(folder)


def test_the_same_run_gives_the_same_bytes_whatever_else_is_drawn(folder: Path) -> None:
    add_losses(folder, range(10, 500, 10), generator_loss=1.0)
    add_samples(folder, 100)
    before = sorted(path.name for path in folder.iterdir())
    summary.draw(folder)
    drawn = (folder / "summary.png").read_bytes()
    with mpl.rc_context({"axes.facecolor": "red", "font.size": 20, "font.family": "serif"}):
        summary.draw(folder)
        assert mpl.rcParams["axes.facecolor"] == "red"
    assert (folder / "summary.png").read_bytes() == drawn
    assert b"matplotlib" not in drawn.lower()
    assert sorted(path.name for path in folder.iterdir()) == sorted([*before, "summary.png"])


def test_a_damaged_grid_of_samples_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / "run"
    runs.create(run, TrainConfig(name="mine"), runs.new_id())
    runs.sample_path(run, 40).touch()
    summary.draw(run)
    assert (run / runs.SUMMARY).stat().st_size > 1000
    assert "the samples 000000000040.png cannot be read and are left out" in caplog.text
