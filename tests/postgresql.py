"""Debian's PostgreSQL, started for a test or a bench in a folder of its own, on a Unix socket alone."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

USER = "postgres"  # Debian's; the server refuses to be root
OPTIONS = "-c listen_addresses='' -c fsync=off -c shared_buffers=16MB -c max_connections=40"


def programs() -> Path | None:
    """Where initdb and pg_ctl lie; None where PostgreSQL is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@contextmanager
def postgresql() -> Iterator[str]:
    """The URL of a new database, which is gone after the block."""
    bin_folder = programs()
    assert bin_folder is not None, "PostgreSQL is not installed"
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))  # short, since a socket's path must be
    prefix = []
    if os.geteuid() == 0:
        shutil.chown(folder, USER)
        prefix = ["runuser", "-u", USER, "--"]
    data = folder / "data"

    def run(*command: object) -> None:
        subprocess.run([*prefix, *map(str, command)], check=True, cwd=folder, stdout=subprocess.DEVNULL)

    run(bin_folder / "initdb", "-D", data, "-U", USER, "-A", "trust", "--no-sync", "--no-locale", "-E", "UTF8")
    run(bin_folder / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", f"{OPTIONS} -k {folder}", "start")
    try:
        yield f"postgresql://{USER}@/postgres?host={folder}"
    finally:
        run(bin_folder / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder)
