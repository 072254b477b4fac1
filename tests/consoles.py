"""The console program, in this process and on a terminal."""

import os
import re
import select
import struct
import subprocess
import termios
from dataclasses import dataclass
from fcntl import ioctl
from pathlib import Path

import pytest
from servers import GANSERVE

from ganserve import cli

SECONDS = 90


@dataclass(frozen=True)
class Said:
    """What a command printed, and how it ended."""

    code: int
    out: str
    err: str


class Console:
    """Runs commands in this process: the whole program but its interpreter."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str | Path) -> Said:
        self._capsys.readouterr()
        code = cli.main([str(word) for word in words])
        return Said(code, *self._capsys.readouterr())

    def done(self, *words: str | Path) -> str:
        """What a command that succeeds prints."""
        said = self(*words)
        assert said.code == 0, said.err
        return said.out

    def refused(self, *words: str | Path) -> str:
        """The one sentence of a command that does not."""
        said = self(*words)
        assert said.code in (1, 2), said
        assert said.err.startswith("ganserve: ")
        assert said.err.count("\n") == 1
        assert said.err.endswith("\n")
        assert "Traceback" not in said.err
        assert said.out == ""
        return said.err.removeprefix("ganserve: ").rstrip("\n")


class Terminal:
    """A command on a terminal of 160 columns; `text` is all that it has shown."""

    def __init__(self, *words: str) -> None:
        self._ours, theirs = os.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 160, 0, 0))
        environment = os.environ | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [GANSERVE, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.text = ""

    def read_until(self, pattern: str) -> None:
        """Read until the pattern was shown."""
        while not re.search(pattern, self.text):
            assert self._read(), f"it ended and showed\n{self.text}"

    def type(self, line: str) -> None:
        os.write(self._ours, f"{line}\n".encode())

    def read_to_the_end(self) -> int:
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait(SECONDS)

    def _read(self) -> bool:
        assert select.select([self._ours], [], [], SECONDS)[0], f"nothing more than\n{self.text}"
        try:
            shown = os.read(self._ours, 65536).decode(errors="replace")
        except OSError:  # how Linux says that nobody writes any more
            return False
        self.text += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown)
        return bool(shown)
