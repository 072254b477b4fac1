import json
import math
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from statistics import fmean, pstdev

import pytest
from pydantic import ValidationError

from ganserve.cli import app
from training import contract
from training.commands import train_command
from training.contract import (
    MAX_SEED,
    FileSpec,
    JobStatus,
    Metrics,
    OptimizerConfig,
    Progress,
    ScoreReference,
    TensorSpec,
    TrainConfig,
)
from training.probe import probe_inputs

HASH = "0" * 64


def config(**values: object) -> TrainConfig:
    """From JSON, as it comes over the wire and from disk."""
    return TrainConfig.model_validate_json(json.dumps(values))


def refusal(**values: object) -> str:
    with pytest.raises(ValidationError) as caught:
        config(**values)
    (error,) = caught.value.errors()
    return f"{'.'.join(str(part) for part in error['loc'])}: {error['msg']}"


# --- names --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "7", "digits", "my-model", "v1.2_final", "a..b", "a" * 63, "0-0"])
def test_a_name_of_small_letters_digits_and_dots_is_one(name: str) -> None:
    assert contract.is_name(name)
    assert config(name=name, dataset=name).model_name == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "a-", ".", "..", ".a", "a.", "a/b", "a\\b", "a b", "a\n", "a\0", "ä", "²", "٣", "a" * 64, "%2e", "con:", "_a"]
)
def test_what_could_be_a_path_or_look_like_another_is_no_name(name: str) -> None:
    assert not contract.is_name(name)
    assert refusal(name=name).startswith("name: ")
    assert refusal(dataset=name).startswith("dataset: ")


@pytest.mark.parametrize("file", ["generator.pt", "a", "A-1_2.png"])
def test_a_bare_file_name_is_allowed(file: str) -> None:
    assert FileSpec(file=file, sha256=HASH, size_bytes=1).file == file


@pytest.mark.parametrize("file", ["", ".", "..", "../a", "a/b", "/a", "a\\b", ".hidden", "a\0", "a\n", "ä", "a" * 101])
def test_a_file_outside_its_folder_is_refused(file: str) -> None:
    with pytest.raises(ValidationError, match="bare file name"):
        FileSpec(file=file, sha256=HASH, size_bytes=1)


@pytest.mark.parametrize("sha256", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64])
def test_a_hash_is_64_small_hexadecimal_digits(sha256: str) -> None:
    with pytest.raises(ValidationError, match="sha256"):
        FileSpec(file="a", sha256=sha256, size_bytes=1)


# --- documents ----------------------------------------------------------------------------------------------------------------


def test_every_default_stands_as_the_papers_have_it() -> None:
    default = TrainConfig()
    assert (default.learning_rate, default.betas) == (2e-4, (0.5, 0.999))
    assert (default.loss, default.critic_steps, default.seed) == ("non-saturating", 1, 0)
    assert default.dataset == "fashion-mnist-10k"


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"seed": True}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"seed": -1}, "seed"),
        ({"seed": MAX_SEED + 1}, "seed"),
        ({"batch_size": 1}, "batch_size"),
        ({"batch_size": 0}, "batch_size"),
        ({"total_images": 0}, "total_images"),
        ({"total_images": 10**12 + 1}, "total_images"),
        ({"learning_rate": 0}, "learning_rate"),
        ({"learning_rate": 1.5}, "learning_rate"),
        ({"learning_rate": "0.1"}, "learning_rate"),
        ({"betas": [0.5, 1.0]}, "betas.1"),
        ({"betas": [-0.1, 0.9]}, "betas.0"),
        ({"betas": [0.5]}, "betas"),
        ({"betas": [0.5, 0.9, 0.9]}, "betas"),
        ({"betas": 0.5}, "betas"),
        ({"critic_steps": 0}, "critic_steps"),
        ({"ema_halflife_images": -1}, "ema_halflife_images"),
        ({"hold_out": 0}, "hold_out"),
        ({"hold_out": 0.6}, "hold_out"),
        ({"checkpoint_images": 0}, "checkpoint_images"),
        ({"sample_images": 0}, "sample_images"),
        ({"generator": {"learning_rate": 0}}, "generator.learning_rate"),
        ({"discriminator": {"betas": [0.5, 2]}}, "discriminator.betas.1"),
        ({"generator": {"momentum": 0.9}}, "generator.momentum"),
        ({"total_image": 5}, "total_image"),
        ({"options": []}, "options"),
        ({"architecture": 3}, "architecture"),
        ({"learning_rate": None}, "learning_rate"),
    ],
    ids=str,
)
def test_a_value_that_is_not_allowed_is_refused_by_its_field(values: dict[str, object], field: str) -> None:
    assert refusal(**values).split(":")[0].startswith(field)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e400"])
@pytest.mark.parametrize("field", ["learning_rate", "ema_halflife_images", "hold_out"])
def test_a_number_that_is_not_finite_is_refused(field: str, number: str) -> None:
    with pytest.raises(ValidationError, match=field):
        TrainConfig.model_validate_json(f'{{"{field}": {number}}}')


def test_a_total_below_one_batch_is_refused_with_both_figures() -> None:
    assert "total_images 10 is less than one batch of 64: give at least batch_size" in refusal(total_images=10)
    assert config(total_images=64).total_images == 64


def test_a_config_never_changes() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().seed = 1  # type: ignore[misc]


def test_a_config_is_read_back_as_it_was_written() -> None:
    own = {"options": {"generator_widths": [8, 9]}, "generator": {"learning_rate": 0.1}}
    written = config(architecture="mlp", betas=[0, 0.9], seed=MAX_SEED, **own)
    assert TrainConfig.model_validate_json(written.model_dump_json()) == written
    assert TrainConfig.model_validate(written.model_dump()) == written


def test_a_model_is_named_after_its_architecture_and_data_unless_it_has_a_name() -> None:
    assert config(architecture="mlp", dataset="pets").model_name == "mlp-pets"
    assert config(architecture="mlp", dataset="pets", name="rex").model_name == "rex"
    long = config(architecture="mlp", dataset="a" * 58 + "-bcde").model_name
    assert long == "mlp-" + "a" * 58, "what is cut off leaves a name"
    assert contract.is_name(long)


def test_progress_is_told_in_percent() -> None:
    assert Progress(images=30, total_images=120).percent == 25.0
    assert Progress(images=3008, total_images=3000).percent == 100.0, "the last batch is a whole one"


@pytest.mark.parametrize("losses", [{"discriminator_loss": math.nan}, {"discriminator_loss": math.inf}])
def test_a_metric_that_is_not_finite_is_never_written(losses: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Metrics(images=1, seconds=1.0, images_per_second=1.0, losses=losses)


def test_a_document_of_another_schema_is_not_read() -> None:
    status = JobStatus(id="a", state="queued", progress=Progress(total_images=1), created_at=contract.now())
    later = status.model_dump() | {"schema_version": 2}
    with pytest.raises(ValidationError, match="schema_version"):
        JobStatus.model_validate(later)
    with pytest.raises(ValidationError, match="state"):
        JobStatus.model_validate(status.model_dump() | {"state": "asleep"})


def test_json_gives_tuples_and_only_of_the_right_items() -> None:
    reference = ScoreReference.model_validate_json('{"real": [1, 2.5], "generated": [0], "num_real": 2, "num_generated": 1}')
    assert reference.real == (1.0, 2.5)
    with pytest.raises(ValidationError, match="real"):
        ScoreReference.model_validate_json('{"real": ["1"], "generated": [], "num_real": 1, "num_generated": 0}')


def test_the_time_is_utc_to_the_second() -> None:
    text = contract.now()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", text)
    assert abs((datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()) < 60


# --- probes -------------------------------------------------------------------------------------------------------------------

LATENT = TensorSpec(name="latent", kind="latent", shape=(50,), distribution="normal")


def test_probe_values_are_fixed_for_ever() -> None:
    """Published manifests hold what modules give for these very values."""
    assert probe_inputs(TensorSpec(name="image", kind="image", shape=(1, 2, 2)), 1, 0) == pytest.approx(
        [0.2360679774997898, -0.5278640450004204, 0.7082039324993694, -0.05572809000084078], abs=1e-12
    )
    normal = probe_inputs(TensorSpec(name="latent", kind="latent", shape=(3,), distribution="normal"), 1, 5)
    shares = [(1 + math.erf(value / math.sqrt(2))) / 2 for value in normal]
    assert shares == pytest.approx([0.7082039325, 0.3262379212, 0.9442719100], abs=1e-9), "multiples of the golden ratio, modulo 1"


def test_probe_latents_are_standard_normal_or_uniform() -> None:
    normal = probe_inputs(LATENT, 40, 0)
    assert len(normal) == 2000
    assert fmean(normal) == pytest.approx(0, abs=0.01)
    assert pstdev(normal) == pytest.approx(1, abs=0.01)
    uniform = probe_inputs(LATENT.model_copy(update={"distribution": "uniform"}), 40, 0)
    assert min(uniform) >= -1
    assert max(uniform) <= 1
    assert fmean(uniform) == pytest.approx(0, abs=0.01)
    assert pstdev(uniform) == pytest.approx(1 / math.sqrt(3), abs=0.01)


def test_probe_labels_are_weights_that_sum_to_one() -> None:
    weights = probe_inputs(TensorSpec(name="label", kind="label", shape=(4,)), 3, 0)
    assert len(weights) == 12
    assert all(weight >= 0 for weight in weights)
    assert [sum(weights[start : start + 4]) for start in (0, 4, 8)] == pytest.approx([1, 1, 1])


def test_rows_and_seeds_of_a_probe_differ() -> None:
    values = probe_inputs(LATENT, 2, 0)
    assert values[:50] != values[50:]
    assert probe_inputs(LATENT, 2, 1) != values
    assert probe_inputs(LATENT, 1, MAX_SEED) != probe_inputs(LATENT, 1, 0)


def test_no_probe_value_is_infinite() -> None:
    assert all(math.isfinite(value) for seed in (0, 1, MAX_SEED) for value in probe_inputs(LATENT, 100, seed))


# --- the command --------------------------------------------------------------------------------------------------------------


def read_by_the_console(command: str) -> TrainConfig:
    words = shlex.split(command)
    assert words[:2] == ["ganserve", "train"]
    _, bound, _ = app.parse_args(words[1:], exit_on_error=False, print_error=False)
    flags = bound.arguments.get("flags")
    return flags.config() if flags else TrainConfig()


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"name": "mine", "architecture": "mlp", "dataset": "pets", "seed": 3, "total_images": 1234},
        {"options": {"generator_widths": [8, 9], "latent_size": 4, "dropout": 0.25}, "architecture": "mlp"},
        {"loss": "minimax", "loss_options": {"label_smoothing": 0.1}},
        {"betas": [0.0, 0.9], "learning_rate": 1e-5, "ema_halflife_images": 0.0},
        {"generator": {"learning_rate": 0.001}, "discriminator": {"betas": [0.0, 0.9], "learning_rate": 0.004}},
        {"initial_model": "digits/production", "hold_out": 0.25, "critic_steps": 5, "batch_size": 128},
        {"checkpoint_images": 7, "sample_images": 9},
        {"recipe": False, "spectral_norm": True, "diff_augment": ["translation"], "penalty": "r1-r2", "penalty_options": {"weight": 3.0}},
    ],
    ids=str,
)
def test_the_command_of_a_config_trains_with_that_config(values: dict[str, object]) -> None:
    assert read_by_the_console(train_command(config(**values))) == config(**values)


def test_every_field_of_a_config_is_a_flag() -> None:
    other = {
        "name": "mine",
        "architecture": "mlp",
        "options": {"latent_size": 4},
        "loss": "minimax",
        "loss_options": {"label_smoothing": 0.1},
        "dataset": "pets",
        "dataset_sha256": "0" * 64,
        "hold_out": 0.2,
        "total_images": 999,
        "batch_size": 9,
        "learning_rate": 0.5,
        "betas": [0.1, 0.2],
        "generator": {"learning_rate": 0.1, "betas": [0.3, 0.4]},
        "discriminator": {"learning_rate": 0.2, "betas": [0.5, 0.6]},
        "critic_steps": 2,
        "ema_halflife_images": 5.0,
        "seed": 1,
        "initial_model": "mine/1",
        "checkpoint_images": 11,
        "sample_images": 12,
        "recipe": False,
        "penalty": "r1",
        "penalty_options": {"weight": 0.5},
        "penalty_interval": 3,
        "preset": "fast-digits",
        "precision": "bfloat16",
        "spectral_norm": True,
        "diff_augment": ["cutout", "color"],
        "learning_rate_schedule": "cosine",
        "evaluation_images": 13,
        "num_evaluated": 14,
        "on_collapse": "stop",
        "extractor": "digits-classifier",
        "formats": ["onnx"],
        "publish": {"alias": "best", "if": {"metric": "kid", "better_than": "production"}},
    }
    assert set(other) == set(TrainConfig.model_fields), "a new field wants a value here"
    assert read_by_the_console(train_command(config(**other))) == config(**other)


def test_the_command_leaves_out_what_follows_the_run() -> None:
    shared = OptimizerConfig(learning_rate=2e-4, betas=(0.5, 0.999))
    resolved = TrainConfig(architecture="mlp", generator=shared, discriminator=shared)
    assert train_command(resolved) == "ganserve train --architecture mlp"


def test_an_augmentation_named_twice_is_refused() -> None:
    with pytest.raises(ValidationError, match="diff_augment color, color names one twice, which has no effect: name each once"):
        config(diff_augment=["color", "color"])


# --- who can read it ----------------------------------------------------------------------------------------------------------


def test_the_contract_needs_no_torch_and_nothing_of_the_trainer() -> None:
    code = (
        "import sys, training.contract, training.catalog, training.files.runs, training.files.versions, training.files.locks;"
        "print(*sorted(name for name in sys.modules if name.split('.')[0] in ('torch', 'numpy', 'app', 'fastapi')"
        " or name.startswith('training.') and name.count('.') == 1))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["training.catalog", "training.contract", "training.files"]
