"""The console program `ganserve`. Mistakes are answered by one sentence and an exit code that is not zero, never by a traceback."""

import sys
from collections.abc import Sequence

import cyclopts
from pydantic import ValidationError

from ganserve.asking import discriminate, generate, interpolate, transform
from ganserve.augment import augment
from ganserve.backups import backup, restore
from ganserve.bench import bench
from ganserve.datasets import datasets_app
from ganserve.fsck import fsck, rebuild_index
from ganserve.jobs import jobs_app
from ganserve.models import architectures, models_app
from ganserve.serving import serve
from ganserve.training import train
from ganserve.transfers import download, import_, pull, push
from ganserve.tuning import tune
from training.contract import UserError

app = cyclopts.App(
    name="ganserve",
    help="Train generative adversarial networks, and serve them over HTTP.",
    help_format="markdown",
    version_flags=["--version"],
    default_parameter=cyclopts.Parameter(negative=()),  # no --no-x and --empty-x that nobody asked for
)
app.command(serve)
app.command(train)
app.command(generate)
app.command(interpolate)
app.command(transform)
app.command(discriminate)
app.command(augment)
app.command(bench)
app.command(tune)
app.command(fsck)
app.command(rebuild_index)
for command, word in ((download, "download"), (import_, "import"), (push, "push"), (pull, "pull")):
    models_app.command(command, name=word)
app.command(models_app)
app.command(jobs_app)
app.command(datasets_app)
app.command(architectures)
app.command(backup)
app.command(restore)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 0, 1 for a mistake, 2 for a command line that cannot be read, 130 after Ctrl-C."""
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        print(f"ganserve: {_sentence(error)}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"ganserve: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()  # whoever read our output has gone; nobody is left to tell
        return 1
    return code if isinstance(code, int) else 0


def _sentence(error: cyclopts.CycloptsError) -> str:
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        parts = []
        for item in cause.errors(include_url=False):
            flag = "--" + ".".join(str(part) for part in item["loc"]).replace("_", "-") if item["loc"] else ""
            message = item["msg"].removeprefix("Value error, ")
            given = f" is {item['input']!r}: " if item["loc"] else ""
            parts.append(f"{flag}{given}{message[:1].lower()}{message[1:]}")
        return "; ".join(parts)
    return " ".join(str(error).split())
