"""`ganserve train`: the trainer in this process, with a progress bar."""

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import ConfigDict, Field

from ganserve.places import Device, Repositories, State, Threads, settings
from training.contract import Augmentations, Formats, MemoryLayout, OptimizerConfig, PublishConfig, TrainConfig, UserError

if TYPE_CHECKING:
    import torch

    from app.settings import Settings
    from training.team import Team


class OptimizerFlags(OptimizerConfig):
    """The same settings, from the words of a command line."""

    model_config = ConfigDict(strict=False)


class PublishFlags(PublishConfig):
    """The same of `publish`, by the names of its fields."""

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)


class TrainFlags(TrainConfig):
    """The training config, from the words of a command line; `config` gives the strict one."""

    model_config = ConfigDict(strict=False)

    options: dict[str, str] = Field(  # type: ignore[assignment]
        default={}, description="The architecture's own options, as --options.latent-size 32; `ganserve architectures` lists them."
    )
    loss_options: dict[str, str] = Field(  # type: ignore[assignment]
        default={}, description="The loss's own options, as --loss-options.label-smoothing 0.1."
    )
    penalty_options: dict[str, str] = Field(  # type: ignore[assignment]
        default={}, description="The penalty's own options, as --penalty-options.weight 5."
    )
    diff_augment: Annotated[Augmentations, Parameter(consume_multiple=True)] = Field(
        default=(), description=f"{TrainConfig.model_fields['diff_augment'].description}"
    )
    formats: Annotated[Formats, Parameter(consume_multiple=True)] = Field(
        default=(), description=f"{TrainConfig.model_fields['formats'].description}"
    )
    generator: OptimizerFlags = Field(default=OptimizerFlags(), description="Of the generator alone.")
    discriminator: OptimizerFlags = Field(default=OptimizerFlags(), description="Of the discriminator alone.")

    publish: PublishFlags = Field(default=PublishFlags(), description=f"{TrainConfig.model_fields['publish'].description}")

    def config(self) -> TrainConfig:
        values = self.model_dump(mode="json", exclude_unset=True)
        for key in {"options", "loss_options", "penalty_options"} & values.keys():
            values[key] = {name.replace("-", "_"): _value(word) for name, word in values[key].items()}
        return TrainConfig.model_validate_json(json.dumps(values))


def _value(word: str) -> object:
    """A word as JSON where it is JSON (64, 0.1, true, [256,512]), else the word itself."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def train(
    *,
    flags: Annotated[TrainFlags, Parameter(name="*")] = TrainFlags(),
    resume: Annotated[
        Path | None,
        Parameter(
            help="A run directory to go on with, from its last checkpoint; of the config, only --total-images may be more than before."
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, Parameter(help="Directory of the run; `<state>/runs/<name>-<id>` when left out.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, Parameter(help="Say what the run would take, measured for some seconds; train nothing, leave nothing.")
    ] = False,
    models: Repositories = (),
    state: State = None,
    device: Device = None,
    threads: Threads = None,
    memory_layout: Annotated[
        MemoryLayout | None, Parameter(help="Of the networks' weights; what is faster is measured when left out.", show_default=False)
    ] = None,
    compiling: Annotated[
        bool,
        Parameter(
            name="--compile", help="Try torch.compile at the beginning of a run of 1,000 steps or more, and use it where it is faster."
        ),
    ] = False,
) -> int:
    """Train a model, and publish it into the first repository as its next version."""
    found = settings(models, state, device, threads)
    from ganserve.progress import telling
    from training.preparation import Places
    from training.team import Team
    from training.worker import pick_device, work

    on = pick_device(found.device)
    if dry_run:
        if memory_layout is not None or compiling:
            raise UserError("--dry-run measures steps in the usual layout, not compiled: leave out --memory-layout and --compile")
        return _dry_run(flags, resume, run_dir, found, on)
    try:
        found.models[0].mkdir(parents=True, exist_ok=True)
    except OSError as error:  # better now than after the training
        raise UserError(f"--models {found.models[0]} cannot be published into: {error.strerror}") from error
    team = Team.gather(on)
    if team.size > 1:
        resume, run_dir = _in_team(resume, run_dir)
    asked = {"num_threads": threads, "memory_layout": memory_layout, "compiled": compiling or None}
    folder = _prepare(flags, resume, run_dir, found, asked, team) if team.leads else resume or run_dir
    team.agree(0)  # the directory is there now
    assert folder is not None
    where = Places(found.datasets, found.models, found.weights, found.digests, found.keep_versions)
    if not team.leads:
        return work(folder, where, on)
    print(f"run directory: {folder}", file=sys.stderr)
    with telling() as listener:
        code = work(folder, where, on, listener, found.threads, memory_layout, compiling=compiling)
    return _report(folder, code, models, state)


def _report(folder: Path, code: int, models: Repositories, state: State) -> int:
    """Say how the run has ended; the exit code."""
    from training.files import runs
    from training.worker import STOPPED

    status = runs.read_status(folder)
    if code == STOPPED:
        places = [word for path in models for word in ("--models", str(path))] + (["--state", str(state)] if state else [])
        print(f"{status.message}: {shlex.join(['ganserve', 'train', '--resume', str(folder), *places])}", file=sys.stderr)
        return 130
    if status.state == "failed":
        raise UserError(f"{status.message} (the whole log: {folder / runs.LOG})")
    print(status.message)
    return 0


def _in_team(resume: Path | None, run_dir: Path | None) -> tuple[Path | None, Path | None]:
    """Where the run of a team lies: torchrun starts a team that was broken with the same words again."""
    folder = resume or run_dir
    if folder is None:
        raise UserError("several processes train one run: name its directory, by --run-dir or --resume")
    return (folder, None) if folder.exists() else (resume, run_dir)


def _prepare(
    flags: TrainFlags, resume: Path | None, run_dir: Path | None, found: "Settings", asked: Mapping[str, object], team: "Team"
) -> Path:
    """The run directory, made where it is a new run.

    Args:
        asked: fields of a Tuning, None where nothing is asked.
    """
    from training.files import runs

    if resume is not None:
        if run_dir is not None:
            raise UserError("--resume names the run directory: leave out --run-dir")
        _resume(resume, flags, found, asked)
        return resume
    from training.catalog import resolve

    config = resolve(flags.config(), found.datasets, found.models, found.weights)
    team.check(config.batch_size)
    id = runs.new_id()
    folder = run_dir or found.state / "runs" / f"{config.model_name}-{id}"
    try:
        runs.create(folder, config, id)
    except OSError as error:
        if folder.is_dir():
            raise _taken(folder) from error
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another --run-dir or --state") from error
    return folder


def _taken(folder: Path) -> UserError:
    return UserError(f"{folder} is there already: choose another --run-dir, or go on with it by --resume {folder}")


def _dry_run(flags: TrainFlags, resume: Path | None, run_dir: Path | None, found: "Settings", device: "torch.device") -> int:
    """Refuse what a run would refuse, and print what it would take."""
    if resume is not None:
        raise UserError("--dry-run is of a run that is yet to begin: leave out --resume, and give the options of the training")
    if run_dir is not None and run_dir.exists():
        raise _taken(run_dir)
    if found.models[0].exists() and not found.models[0].is_dir():
        raise UserError(f"--models {found.models[0]} cannot be published into: it is no folder")
    from ganserve.dry_run import describe
    from training.catalog import resolve
    from training.datasets import load
    from training.estimate import estimate
    from training.files.machine import num_training_threads
    from training.preparation import Places

    config = resolve(flags.config(), found.datasets, found.models, found.weights)
    dataset = load(config.dataset, found.datasets)
    num_threads = found.threads or num_training_threads()
    print("measuring some steps ...", file=sys.stderr)
    places = Places(found.datasets, found.models, found.weights, found.digests, found.keep_versions)
    estimated = estimate(config, dataset, places, device, num_threads)
    print("\n".join(describe(config, dataset.card, estimated, f"{device} with {num_threads} thread{'s' if num_threads > 1 else ''}")))
    return 0


def _resume(folder: Path, flags: TrainFlags, found: "Settings", asked: Mapping[str, object]) -> None:
    """Make a run ready to go on, for more images where that is asked."""
    from training.datasets import card
    from training.files import locks, runs
    from training.submission import resume

    if not (folder / runs.CONFIG).is_file():
        raise UserError(f"{folder} is no run directory: it has no {runs.CONFIG}")
    try:
        begun, status = runs.read_config(folder), runs.read_status(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged: its {runs.CONFIG} or {runs.STATUS} cannot be read; begin a new run") from error
    for field, value in asked.items():
        if status.tuning is not None and value is not None and value != (was := getattr(status.tuning, field)):
            flag = {"num_threads": "--threads", "memory_layout": "--memory-layout", "compiled": "--compile"}[field]
            raise UserError(f"the run was begun with {flag} {str(was).lower()}, and goes on with it: leave {flag} out")
    config = begun
    if flags.model_fields_set:
        config = resume(begun, flags.config(), card(begun.dataset, found.datasets), found.weights)
    if config.total_images > begun.total_images:
        if begun.on_collapse == "stop" and any(finding.kind == "generator-collapsed" for finding in status.findings):
            raise UserError(
                f"{folder} ended because its generator collapsed and on_collapse is stop; trained on, it would end there again: begin a"
                " new run with what the finding says to try"
            )
        with locks.hold(folder):
            runs.train_on(folder, config)
    elif status.state == "succeeded":
        raise UserError(f"{folder} is finished: {status.message}; to train on, give more than {begun.total_images:,} --total-images")
    (folder / runs.CANCEL).unlink(missing_ok=True)
