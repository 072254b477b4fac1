"""`ganserve train`: the trainer in this process, with a progress bar."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from pydantic import ConfigDict, Field

from ganserve.places import Device, Repositories, State, Threads, settings
from training.contract import Augmentations, OptimizerConfig, TrainConfig, UserError

if TYPE_CHECKING:
    from app.settings import Settings


class OptimizerFlags(OptimizerConfig):
    """The same settings, from the words of a command line."""

    model_config = ConfigDict(strict=False)


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
    generator: OptimizerFlags = Field(default=OptimizerFlags(), description="Of the generator alone.")
    discriminator: OptimizerFlags = Field(default=OptimizerFlags(), description="Of the discriminator alone.")

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
        Path | None, Parameter(help="A run directory to go on with, from its last checkpoint; takes no other config.")
    ] = None,
    run_dir: Annotated[
        Path | None, Parameter(help="Directory of the run; `<state>/runs/<name>-<id>` when left out.", show_default=False)
    ] = None,
    models: Repositories = (),
    state: State = None,
    device: Device = None,
    threads: Threads = None,
) -> int:
    """Train a model, and publish it into the first repository as its next version."""
    found = settings(models, state, device, threads)
    from ganserve.progress import telling
    from training.files import runs
    from training.preparation import Places
    from training.worker import STOPPED, pick_device, work

    on = pick_device(found.device)
    try:
        found.models[0].mkdir(parents=True, exist_ok=True)
    except OSError as error:  # better now than after the training
        raise UserError(f"--models {found.models[0]} cannot be published into: {error.strerror}") from error
    folder = _prepare(flags, resume, run_dir, found)
    print(f"run directory: {folder}", file=sys.stderr)
    with telling() as listener:
        code = work(folder, Places(found.datasets, found.models, found.weights), on, listener, found.threads)
    status = runs.read_status(folder)
    if code == STOPPED:
        places = [word for path in models for word in ("--models", str(path))] + (["--state", str(state)] if state else [])
        print(f"{status.message}: {shlex.join(['ganserve', 'train', '--resume', str(folder), *places])}", file=sys.stderr)
        return 130
    if status.state == "failed":
        raise UserError(f"{status.message} (the whole log: {folder / runs.LOG})")
    print(status.message)
    return 0


def _prepare(flags: TrainFlags, resume: Path | None, run_dir: Path | None, found: "Settings") -> Path:
    """The run directory, made where it is a new run."""
    from training.files import runs

    if resume is not None:
        if flags.model_fields_set or run_dir is not None:
            raise UserError("--resume goes on with a run as it was begun: leave out every other option of the training")
        _check_resumable(resume)
        (resume / runs.CANCEL).unlink(missing_ok=True)
        return resume
    from training.catalog import resolve

    config = resolve(flags.config(), found.datasets, found.models, found.weights)
    id = runs.new_id()
    folder = run_dir or found.state / "runs" / f"{config.model_name}-{id}"
    try:
        runs.create(folder, config, id)
    except OSError as error:
        if folder.is_dir():
            raise UserError(f"{folder} is there already: choose another --run-dir, or go on with it by --resume {folder}") from error
        raise UserError(f"{folder} cannot be made: {error.strerror}; choose another --run-dir or --state") from error
    return folder


def _check_resumable(folder: Path) -> None:
    from training.files import runs

    if not (folder / runs.CONFIG).is_file():
        raise UserError(f"{folder} is no run directory: it has no {runs.CONFIG}")
    try:
        runs.read_config(folder)
        status = runs.read_status(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is damaged: its {runs.CONFIG} or {runs.STATUS} cannot be read; begin a new run") from error
    if status.state == "succeeded":
        raise UserError(f"{folder} is finished: {status.message}")
