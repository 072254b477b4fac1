"""`ganserve backup` and `ganserve restore`: all that must outlive a disk, in one file."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ganserve.places import Repositories, State, settings
from training.contract import UserError
from training.files.backup import BackupError, back_up, left_out
from training.files.backup import restore as put_back


def backup(file: Annotated[Path, Parameter(help="The tar to write.")], /, *, models: Repositories = (), state: State = None) -> None:
    """Copy the first repository, data sets, jobs, runs and what is trusted into one file, while servers and trainers go on."""
    found = settings(models, state)
    with _told(file):
        report = back_up(file, found.models[0], found.state)
    for remark in [*report.remarks, *left_out(found.models)]:
        print(remark, file=sys.stderr)
    print(
        f"{file}: {report.num_versions} versions of {report.num_models} models, {report.num_runs} jobs and runs,"
        f" {report.num_datasets} data sets, {file.stat().st_size / 1e6:,.1f} MB"
    )


def restore(
    file: Annotated[Path, Parameter(help="A file that `ganserve backup` wrote.")], /, *, models: Repositories = (), state: State = None
) -> None:
    """Put back what a backup holds, verified, where there is nothing yet; a server that is started there goes on with the jobs."""
    found = settings(models, state)
    with _told(file):
        put_back(file, found.models[0], found.state)
    print(f"{file} is restored: models in {found.models[0]}, state in {found.state}")


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Raises UserError for what cannot be done."""
    try:
        yield
    except BackupError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{error.filename or file}: {error.strerror}") from error
