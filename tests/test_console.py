"""The console program: the same questions as over HTTP, and mistakes that are answered by one sentence."""

import json
import re
import shlex
import shutil
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import cyclopts
import numpy as np
import pytest
import tiny_versions
from api_client import Pixels, cells, picture
from consoles import SECONDS, Console
from PIL import Image
from servers import GANSERVE, ROOT, Server

from app.choices import Choices
from ganserve import cli
from ganserve.bench import HEADINGS
from training.contract import Finding, TrainConfig
from training.files import runs

pytest_plugins = ["console_fixtures"]


# --- help ---------------------------------------------------------------------------------------------------------------------


def commands(app: cyclopts.App, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], cyclopts.App]]:
    for name in app:
        if not name.startswith("-"):
            yield (*path, name), app[name]
            yield from commands(app[name], (*path, name))


COMMANDS = dict(commands(cli.app))


def test_the_commands_are_those_that_are_promised() -> None:
    assert {path[0] for path in COMMANDS} == {
        "serve",
        "train",
        "generate",
        "interpolate",
        "transform",
        "discriminate",
        "augment",
        "bench",
        "tune",
        "models",
        "jobs",
        "datasets",
        "architectures",
        "backup",
        "restore",
        "fsck",
        "rebuild-index",
    }


@pytest.mark.parametrize("path", [(), *COMMANDS], ids=" ".join)
def test_help_names_every_parameter_and_every_command(console: Console, path: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    app = COMMANDS.get(path, cli.app)
    text = console.done(*path, "--help")
    assert f"Usage: {' '.join(['ganserve', *path])}" in text
    assert all(name in text for name in app if not name.startswith("-"))
    if app.default_command is None:
        return
    for argument in app.assemble_argument_collection():
        if argument.show and not argument.names[0].startswith("*"):
            assert argument.names[0] in text
            lines = [line for line in text.splitlines() if argument.names[0] in line]
            assert len(lines[0].replace(argument.names[0], "").strip(" │*")) > 10, f"{argument.names[0]} is not explained"


def test_help_of_train_has_every_field_of_the_config(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    text = console.done("train", "--help")
    for name in TrainConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in text
    for player in ("generator", "discriminator"):
        assert f"--{player}.learning-rate" in text
        assert f"--{player}.betas" in text


def test_without_a_command_there_is_help(console: Console) -> None:
    assert "Usage: ganserve COMMAND" in console.done()
    assert re.fullmatch(r"\d+\.\d+\.\d+\S*\s*", console.done("--version"))


# --- mistakes -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("nonsense", 'Unknown command "nonsense"'),
        ("generate", "MODEL requires an argument"),
        ("generate digits --nonsense", "Unknown option: --nonsense"),
        ("generate digits --seed x", "--seed"),
        ("generate digits -o picture.tiff", r"picture.tiff ends in '.tiff'; the endings .png, .jpg"),
        ("generate digits -o picture", "picture ends in ''; the endings .png"),
        ("generate digits -o animation.gif", "ends in '.gif'"),
        ("interpolate digits 1 2 -o film.mp4", "ends in '.mp4'; the endings .png, .*.gif"),
        ("interpolate digits 1 2 --method bezier", "--method"),
        ("interpolate digits", "SEEDS"),
        ("discriminate digits missing.png", "missing.png cannot be read: No such file or directory"),
        ("discriminate digits .", "cannot be read: Is a directory"),
        ("models alias digits production 1", "there is no model 'digits'; there are: none yet"),
        ("models alias digits 7 1 --models {root}/models", "'7' cannot be an alias"),
        ("models show digits", "there is no model 'digits'; there are: none yet"),
        ("jobs show nothing", "there is no job 'nothing'; GET /jobs lists them"),
        ("jobs cancel nothing", "there is no job 'nothing'"),
        ("jobs show a/../b?c", "there is no "),
        ("generate digits --server http://127.0.0.1:1", "no answer from http://127.0.0.1:1: .*; is `ganserve serve` running there"),
        ("generate digits --server nonsense", "--server nonsense is no address: write http://nonsense"),
        ("generate digits --server http://localhost:port", "--server http://localhost:port is no address"),
        ("generate digits --server http://127.0.0.1:1 --models .", "--models, --state, --device and --threads are for models loaded here"),
        ("generate digits --device nonsense", "device 'nonsense' is not to be had here: .*auto and cpu are"),
        ("generate digits --threads 0", "--threads is 0; at least 1 is allowed"),
        ("serve --port 65536", "--port is 65536; 0 to 65535 is allowed"),
        ("serve --port x", "--port"),
        ("serve --queue-images 0", 'Invalid value "0" for --queue-images. Must be >= 1'),
        ("serve --deadline-seconds 1e3", "--deadline-seconds"),
        ("serve --model-memory-megabytes 0", 'Invalid value "0" for --model-memory-megabytes. Must be >= 1'),
        ("serve --backend onnx", 'Invalid value "onnx" for --backend. Choose from: "torchscript", '),
        ("serve --pin cats", "--pin cats is no model; there are: none yet"),
        ("serve --log-format xml", 'Invalid value "xml" for --log-format. Choose from: "plain", "json"'),
        ("serve --host 0.0.0.0", "0.0.0.0 can be reached from other machines, and no key is set: set GANSERVE_API_KEY"),
        ("serve --host ::", ":: can be reached from other machines"),
        ("serve --host 192.0.2.1", "192.0.2.1 can be reached"),
        ("serve --device nonsense", "device 'nonsense' is not to be had here"),
        ("train --architecture dcgna", "architecture: 'dcgna' is unknown; known: .*dcgan, .*mlp"),
        ("train --total-images 5", "total_images 5 is less than one batch of 64"),
        ("train --total-images many", "--total-images is 'many': input should be a valid integer"),
        ("train --learning-rate nan", "--learning-rate is 'nan': input should be a finite number"),
        ("train --betas 0.5", "--betas"),
        ("train --generator.betas 0.5 2", "--generator.betas"),
        ("train --generator.rate 1", "--generator.rate"),
        ("train --name ../x", "--name is '../x': 1 to 63 small letters"),
        ("train --dataset /etc", "--dataset is '/etc'"),
        ("train --dataset imagenet", "dataset: .*imagenet"),
        ("train --architecture mlp --options.dropout 7", "options.dropout"),
        ("train --architecture mlp --options.dropout NaN", "options.dropout"),
        ("train --architecture mlp --options.widths 7", "mlp has no option 'widths'; its options: latent_size"),
        ("train --loss-options.smoothing 7", "has no option 'smoothing'; its options: label_smoothing"),
        ("train --loss none", "loss: 'none' is unknown; known: "),
        ("train --initial-model none", "initial_model: there is no model 'none'; there are: none yet"),
        ("train --resume missing", "missing is no run directory: it has no config.json"),
        ("train --resume missing --run-dir here", "--resume names the run directory: leave out --run-dir"),
        ("train --preset fast", "preset: 'fast' is unknown; known: fast-digits"),
        ("train --run-dir /dev/null/run", "/dev/null/run cannot be made: File exists; choose another --run-dir"),
        ("train --run-dir /dev/null/a/run", "/dev/null/a/run cannot be made: Not a directory"),
        ("train --state /dev/null", "cannot be made: Not a directory"),
        ("train --device nonsense", "device 'nonsense' is not to be had here"),
        ("train --threads 0", "--threads is 0"),
        ("datasets show nothing", "nothing"),
    ],
)
def test_a_mistake_is_answered_by_one_sentence(console: Console, line: str, sentence: str) -> None:
    assert re.search(sentence, console.refused(*shlex.split(line.format(root=ROOT))))


def test_a_port_that_is_taken_is_refused(console: Console) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        sentence = console.refused("serve", "--port", str(taken.getsockname()[1]))
    assert re.search("Address already in use.*; choose another --port or --host", sentence)


def test_a_wrong_environment_is_refused(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GANSERVE_PORT", "http")
    assert "GANSERVE_PORT is 'http'" in console.refused("serve")


def test_a_real_process_prints_its_sentence_and_no_traceback(tmp_path: Path) -> None:
    for words, code in ((["generate", "digits", "--models", "nowhere"], 1), (["generate", "digits", "--seed"], 2)):
        finished = subprocess.run([GANSERVE, *words], capture_output=True, text=True, check=False, timeout=SECONDS, cwd=tmp_path)
        assert finished.returncode == code
        assert re.fullmatch(r"ganserve: [^\n]+\n", finished.stderr)
        assert finished.stdout == ""


def test_a_reader_that_leaves_is_no_traceback() -> None:
    with subprocess.Popen([GANSERVE, "datasets", "list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(SECONDS) == 1


# --- questions, to the models here or to a running server ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The words that have a demo model loaded in this process."""
    folder = tmp_path_factory.mktemp("here")
    shutil.copytree(ROOT / "models" / "digits", folder / "digits")
    return ["--models", str(folder), "--device", "cpu"]


@pytest.fixture
def there(server: str) -> list[str]:
    return ["--server", server]


def read(name: str) -> Pixels:
    return picture(Path(name).read_bytes())


def num_frames(name: str) -> int:
    with Image.open(name) as image:
        return getattr(image, "n_frames", 1)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("generate digit", "there is no model 'digit'; there are: .*did you mean 'digits'"),
        ("generate digits/7", "model 'digits' has no version 7; versions: 1"),
        ("generate digits/best", "model 'digits' has no version 'best'"),
        ("generate digits/../fashion", "has no version"),
        ("generate digits -n 0", "num_images is 0: "),
        ("generate digits --seed -1", "seed is -1: "),
        ("generate digits --truncation 2", "truncation is 2.0: "),
        ("generate digits --labels cat", "labels: this model takes seed, latents, truncation"),
        ("generate digits --columns 2 -o x.zip", "columns has no effect on application/zip"),
        ("generate digits -o missing/x.png", "missing/x.png cannot be written: No such file or directory"),
        ("interpolate digits 1", "anchors is "),
        ("interpolate digits 1 2 --steps 300", "steps is 300: "),
        ("interpolate digits 1 2 --frames-per-second 5", "frames_per_second has no effect on a still"),
        ("generate digits --best-of 65", "best_of is 65: "),
        ("generate digits --part stages", "part: digits has no part 'stages'; parts to run: none"),
        ("interpolate digits 1 2 --labels cat", "labels: this model takes seed, latents, truncation"),
        ("discriminate digits {root}/README.md", "README.md: this is no picture that can be read"),
        ("discriminate digits {root}/docs/images/one.png --labels 3", "labels: the discriminator of digits takes no labels"),
        ("discriminate digits {root}/docs/images/one.png --sources {root}/docs/images/one.png", "digits takes no sources"),
        (
            "transform digits {root}/docs/images/one.png",
            "digits makes images of latent, and this route wants",
        ),
        ("transform digits {root}/docs/images/one.png -o x.zip", "x.zip ends in '.zip'; the endings .png, .jpg, .jpeg, .webp are allowed"),
        ("transform digits nothing.png", "nothing.png cannot be read: No such file or directory"),
        ("bench digit", "there is no model 'digit' to sample from; there are: digits"),
        ("bench --seconds 0", "--num-images must be 1 to 256, --connections at least 1 each, and --seconds more than 0"),
        ("models show digits?x", "there is no model 'digits.x'"),
        ("models show digits/9", "has no version"),
        ("jobs cancel nothing", "there is no job 'nothing'"),
    ],
)
def test_what_the_service_refuses_is_said_in_its_own_words(console: Console, there: list[str], line: str, sentence: str) -> None:
    assert re.search(sentence, console.refused(*shlex.split(line.format(root=ROOT)), *there))
    assert not list(Path.cwd().iterdir()), "nothing was written"


def test_the_models_here_give_what_a_server_gives(console: Console, here: list[str], there: list[str]) -> None:
    words = ["generate", "digits", "-n", "4", "--seed", "7", "--truncation", "0.8"]
    assert console.done(*words, "-o", "here.png", *here) == "here.png: digits version 1, seed 7\n"
    assert console.done(*words, "-o", "there.png", *there) == "there.png: digits version 1, seed 7\n"
    assert np.array_equal(read("here.png"), read("there.png"))
    assert console.done("interpolate", "digits", "3", "11", "-o", "here.gif", *here) == "here.gif: digits version 1\n"
    console.done("interpolate", "digits", "3", "11", "-o", "there.gif", *there)
    assert Path("here.gif").read_bytes() == Path("there.gif").read_bytes()
    assert num_frames("here.gif") == 10
    scores = [console.done("discriminate", "digits", "here.png", *where) for where in (here, there)]
    assert scores[0] == scores[1]
    assert console.refused("generate", "digit", *here) == "there is no model 'digit'; there are: digits; did you mean 'digits'?"


def test_bench_prints_a_row_for_each_number_of_connections(console: Console, there: list[str]) -> None:
    said = console.done("bench", "digits", "-n", "4", "--connections", "1", "3", "--seconds", "0.2", *there)
    title, headings, *rows = said.splitlines()
    assert title == "digits, 4 images a request"
    assert re.split(" {2,}", headings) == list(HEADINGS)
    assert [row.split()[0] for row in rows] == ["1", "3"]
    for row in rows:
        _, requests, images, *milliseconds, others = (cell.replace(",", "") for cell in row.split())
        assert float(images) == pytest.approx(4 * float(requests), rel=0.1)
        median, p95, p99 = map(float, milliseconds[:3])
        assert 0 < median <= p95 <= p99
        assert others == "none"


def test_bench_starts_a_server_where_none_is_named(console: Console, here: list[str]) -> None:
    assert "digits, 16 images a request" in console.done("bench", "--connections", "1", "--seconds", "0.1", *here)
    sentence = "no server could be started: device 'nonsense' is not to be had here"
    assert sentence in console.refused("bench", "--device", "nonsense")


def test_tune_chooses_for_the_servers_of_a_state_folder(console: Console, tmp_path: Path) -> None:
    repository, state = tmp_path / "models", tmp_path / "state"
    words = ["tune", "--models", repository, "--state", state, "--threads", "1"]
    assert console.refused(*words) == "nothing was measured: there is no model here"
    tiny_versions.publish(repository, "tiny", tiny_versions.single())
    headings, *lines = console.done(*words, "--dry-run").splitlines()
    assert headings.split() == ["model", "module", "back", "end", "threads", "rows", "ms", "rows", "images/s"]
    assert [line.split()[:4] for line in lines] == [
        ["tiny", "generator", backend, "1"] for backend in ("torchscript", "torchscript-frozen", "torchscript-channels-last")
    ]
    assert sum(line.endswith("chosen") for line in lines) == 1
    assert not (state / "serving.json").exists()
    assert f"{state / 'serving.json'} holds the choice" in console.done(*words)
    assert Choices.model_validate_json((state / "serving.json").read_bytes()).threads == 1
    assert "--reset and --dry-run do not go together" in console.refused(*words, "--reset", "--dry-run")
    assert console.done(*words, "--reset") == "servers that start from now on run as usual\n"
    assert console.done(*words, "--reset") == "nothing was chosen, and servers run as usual\n"


def test_generate_writes_the_form_that_the_ending_chooses(console: Console, there: list[str]) -> None:
    words = ["generate", "digits", "-n", "4", "--seed", "7", *there]
    assert console.done(*words) == "generated.png: digits version 1, seed 7\n"
    images = cells(read("generated.png"), 4, 2, 28)
    for name in ("a.jpg", "a.jpeg", "a.webp", "a.zip", "a.npy", "a.json", "A.PNG"):
        assert console.done(*words, "--output", name) == f"{name}: digits version 1, seed 7\n"
    for name, form in (("a.jpg", "JPEG"), ("a.jpeg", "JPEG"), ("a.webp", "WEBP"), ("A.PNG", "PNG")):
        with Image.open(name) as image:
            assert image.format == form
    assert np.array_equal(np.load("a.npy")[..., 0], images)
    with zipfile.ZipFile("a.zip") as archive:
        assert np.array_equal(np.stack([picture(archive.read(name)) for name in archive.namelist()]), images)
    assert json.loads(Path("a.json").read_bytes())["seeds"] == [7, 8, 9, 10]


def test_generate_tells_the_seed_that_it_drew_and_gives_the_same_for_it(console: Console, there: list[str]) -> None:
    words = ["generate", "digits/1", "--num-images", "2", "--columns", "1", *there]
    seed = console.done(*words).removeprefix("generated.png: digits version 1, seed ").strip()
    console.done(*words, "--seed", seed, "-o", "again.png")
    assert read("generated.png").shape == (58, 28)
    assert np.array_equal(read("again.png"), read("generated.png"))


def test_interpolate_writes_a_strip_a_grid_or_an_animation(console: Console, there: list[str]) -> None:
    words = ["interpolate", "digits", "3", "11", "20", "--steps", "2", *there]
    assert console.done(*words) == "interpolation.png: digits version 1\n"
    strip = read("interpolation.png")
    assert strip.shape == (28, 7 * 30 - 2)
    console.done(*words, "--columns", "4", "-o", "grid.png")
    assert np.array_equal(cells(read("grid.png"), 7, 4, 28), cells(strip, 7, 7, 28))
    console.done(*words, "-o", "film.gif", "--frames-per-second", "5")
    console.done(*words, "-o", "film.webp", "--animate")
    console.done(*words, "-o", "still.webp")
    console.done(*words, "-o", "line.png", "--method", "lerp", "--truncation", "0.5")
    assert [num_frames(name) for name in ("film.gif", "film.webp", "still.webp")] == [7, 7, 1]
    assert not np.array_equal(read("line.png"), strip)


def test_discriminate_scores_each_file_and_says_what_that_means(console: Console, there: list[str]) -> None:
    console.done("generate", "digits", "-n", "1", "--seed", "7", "-o", "own.png", *there)
    Image.effect_noise((28, 28), 100).save("noise.png")
    lines = console.done("discriminate", "digits", "own.png", "noise.png", *there).splitlines()
    pattern = r"(\S+): score (-?[\d.]+), probability of being real ([\d.]+), above (\d+) % of real images and (\d+) % of generated ones"
    found = [match.groups() for line in lines if (match := re.fullmatch(pattern, line))]
    assert [groups[0] for groups in found] == ["own.png", "noise.png"], lines
    assert float(found[0][1]) > float(found[1][1])


def test_the_best_of_several_is_told_by_its_seed(console: Console, there: list[str]) -> None:
    said = console.done("generate", "digits", "-n", "1", "--seed", "7", "--best-of", "4", "-o", "best.png", *there)
    seed = said.rstrip().removeprefix("best.png: digits version 1, seed ")
    assert seed in ("7", "8", "9", "10")
    console.done("generate", "digits", "-n", "1", "--seed", seed, "-o", "same.png", *there)
    assert np.array_equal(read("same.png"), read("best.png"))


def test_models_of_classes_pairs_parts_and_pictures_are_asked_too(console: Console, tmp_path: Path) -> None:
    models = tmp_path / "kinds"
    tiny_versions.publish(models, "classes", tiny_versions.labelled(), discriminator=tiny_versions.label_judging())
    tiny_versions.publish(models, "enlarge", tiny_versions.enlarging(1), discriminator=tiny_versions.pair_judging())
    tiny_versions.publish(models, "staged", tiny_versions.single(), parts={"stages": tiny_versions.stages()})
    where = ["--models", models, "--device", "cpu"]
    console.done("generate", "classes", "--labels", "all", "-o", "all.png", *where)
    assert read("all.png").shape == (28, 78)
    console.done("interpolate", "classes", "3", "3", "--labels", "cat", "2", "--steps", "1", "-o", "walk.png", *where)
    assert read("walk.png").shape == (8, 28)
    console.done("generate", "staged", "-n", "2", "--part", "stages", "-o", "stages.png", *where)
    assert read("stages.png").shape == (18, 16)
    Image.effect_noise((20, 12), 100).save("small.png")
    assert console.done("transform", "enlarge", "small.png", *where) == "transformed.png: enlarge version 1\n"
    assert read("transformed.png").shape == (24, 40)
    console.done("transform", "enlarge/1", "small.png", "-o", "big.webp", *where)
    assert console.done("discriminate", "enlarge", "transformed.png", "--sources", "small.png", *where).startswith("transformed.png: score")
    Image.effect_noise((8, 8), 100).save("tiny.png")
    scores = [console.done("discriminate", "classes", "tiny.png", "--labels", label, *where) for label in ("cat", "fox")]
    assert scores[0] != scores[1]


def test_a_running_server_is_asked_of_models_jobs_and_architectures(
    console: Console, server: str, there: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "digits: mlp, versions 1" in console.done("models", "list", *there)
    monkeypatch.setenv("GANSERVE_SERVER", server)
    assert json.loads(console.done("models", "show", "digits/1"))["manifest"]["version"] == 1
    assert json.loads(console.done("models", "show", "digits"))["manifest"]["name"] == "digits"
    assert console.done("jobs", "list") == ""
    assert "architecture mlp" in console.done("architectures")


def test_the_key_of_a_server_is_sent(
    console: Console, start: Callable[..., Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = "a-key-of-this-test-alone"
    url = start(None, [tmp_path / "models"], environment={"GANSERVE_API_KEY": key}).url
    assert "the server wants its key, and GANSERVE_API_KEY is not it" in console.refused("models", "list", "--server", url)
    monkeypatch.setenv("GANSERVE_API_KEY", key)
    assert console.done("models", "list", "--server", url) == ""


def test_models_lists_shows_and_names_versions(console: Console, here: list[str], tmp_path: Path) -> None:
    assert console.done("models", "list", *here) == "digits: mlp, versions 1\n"
    shown = json.loads(console.done("models", "show", "digits", *here))
    assert shown["manifest"]["name"] == "digits"
    assert shown["command"].startswith("ganserve train ")
    both = ["--models", tmp_path / "models", *here[:2]]
    assert console.done("models", "alias", "digits", "production", "1", *both) == "digits: production is version 1\n"
    assert json.loads((tmp_path / "models" / "digits" / "aliases.json").read_text()) == {"production": 1}
    assert console.done("models", "list", *both) == "digits: mlp, versions 1, production is 1\n"
    assert json.loads(console.done("models", "show", "digits/production", *both)) == shown
    assert not (Path(here[1]) / "digits" / "aliases.json").exists(), "only the first repository is written to"


def test_models_lists_what_is_broken_and_why(console: Console, tmp_path: Path) -> None:
    (tmp_path / "models" / "sketch" / "3").mkdir(parents=True)
    assert console.done("models", "list") == "broken: sketch version 3: manifest.json is missing\n"
    assert console.done("models", "list", "--models", tmp_path / "nowhere") == ""


def test_jobs_are_listed_shown_and_cancelled_where_no_server_runs(console: Console, tmp_path: Path) -> None:
    assert console.done("jobs", "list") == ""
    config = TrainConfig(name="waiting")
    ids = [runs.new_id() for _ in range(120)]
    for id in ids:
        runs.create(tmp_path / "state" / "jobs" / id, config, id)
    lines = console.done("jobs", "list").splitlines()
    assert [line.split()[0] for line in lines] == sorted(ids, reverse=True), "all of them, over pages"
    assert re.fullmatch(r"\S+  queued       0.0 %  waiting  number \d+ in the queue", lines[0])
    assert json.loads(console.done("jobs", "show", ids[0]))["config"]["name"] == "waiting"
    assert console.done("jobs", "cancel", ids[0]) == f"{ids[0]}: cancelled, cancelled before it started\n"
    assert runs.read_status(tmp_path / "state" / "jobs" / ids[0]).state == "cancelled"
    assert console.done("jobs", "list", "--state", "cancelled").split()[0] == ids[0]
    assert console.done("jobs", "list", "--model", "other") == ""


def test_a_job_is_watched_to_its_end(console: Console, tmp_path: Path) -> None:
    id, folder = runs.new_id(), tmp_path / "state" / "jobs"
    runs.create(folder / id, TrainConfig.model_validate({"architecture": "mlp", "num_evaluated": 0, "total_images": 1000}), id)
    status = runs.read_status(folder / id)

    def write(images: int, state: str, **changes: object) -> None:
        progress = status.progress.model_copy(update={"images": images, "losses": {"generator_loss": 0.5}})
        runs.write_status(folder / id, status.model_copy(update={"state": state, "progress": progress, **changes}))

    def work() -> None:
        time.sleep(1.0)  # it is queued for a while
        write(250, "running", findings=(Finding(kind="memorising", images=200, message="copies"),))
        time.sleep(1.5)
        write(1000, ended, message="its end")

    for ended, code in (("succeeded", 0), ("failed", 1)):
        runs.write_status(folder / id, status)
        worker = threading.Thread(target=work)
        worker.start()
        said = console("jobs", "watch", id)
        worker.join()
        assert (said.code, said.out) == (code, f"{id}: {ended}, its end\n")
        assert " 25%  250 of 1,000 images" in said.err
        assert said.err.count("warning: memorising at 200 images: copies") == 1


def test_jobs_are_paused_resumed_tried_again_and_removed_where_no_server_runs(console: Console, tmp_path: Path) -> None:
    id, folder = runs.new_id(), tmp_path / "state" / "jobs"
    config = TrainConfig.model_validate({"architecture": "mlp", "num_evaluated": 0})
    runs.create(folder / id, config, id)

    assert console.done("jobs", "pause", id) == f"{id}: paused, paused before it started\n"
    assert console.done("jobs", "resume", id) == f"{id}: queued, in the queue\n"
    assert not runs.is_pause_asked(folder / id)
    assert "a job can be resumed while it is paused" in console.refused("jobs", "resume", id)
    assert console.done("jobs", "cancel", id) == f"{id}: cancelled, cancelled before it started\n"
    assert console.done("jobs", "retry", id) == f"{id}: queued, in the queue\n"
    assert console.done("jobs", "cancel", id)
    assert console.done("jobs", "remove", id) == f"{id}: removed\n"
    assert not (folder / id).exists()


def test_architectures_are_listed_with_their_options(console: Console) -> None:
    text = console.done("architectures")
    for part in (
        "architecture mlp: ",
        "architecture dcgan: ",
        "--options.latent-size (128): ",
        "loss non-saturating: ",
        "penalty r1: ",
        "--penalty-options.weight (1.0): ",
    ):
        assert part in text
    assert "data set fashion-mnist-10k: 10,000 images of 1x28x28" in text


def test_a_state_or_a_repository_that_is_a_file_is_told_before_the_server_starts(console: Console, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert console.refused("serve", "--state", tmp_path / "file", "--port", "0").startswith(
        f"--state {tmp_path / 'file'} cannot be written"
    )
    assert console.refused("serve", "--models", tmp_path / "file", "--port", "0") == f"--models {tmp_path / 'file'} is no folder"
