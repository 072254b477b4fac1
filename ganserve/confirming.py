"""What the machine's owner is asked before a model from elsewhere may be loaded: it is code, so the question is where it is from.

The digest is that of the manifest, which holds the hashes of all other files. It is worth something only where it is compared with what
the publisher says, by another way than the one that the model came.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from cyclopts import Parameter

from training.contract import FileSpec, Manifest, UserError
from training.files import versions
from training.files.digests import digest_of
from training.files.directories import DamagedFileError, verify


@dataclass(frozen=True)
class Offered:
    """A version from elsewhere, as its own manifest describes it."""

    content: bytes  # of the manifest
    manifest: Manifest

    @classmethod
    def read(cls, folder: Path) -> Self:
        """A version that lies on disk, with its files verified.

        Raises:
            UserError: it is damaged.
        """
        try:
            content = (folder / versions.MANIFEST).read_bytes()
            offered = cls(content, Manifest.model_validate_json(content))
            for file in offered.files:
                verify(folder, file)
        except (OSError, ValueError, DamagedFileError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{folder} is damaged: {reason}; get it again from where it is from") from error
        return offered

    @property
    def digest(self) -> str:
        return digest_of(self.content)

    @property
    def version(self) -> str:
        return f"{self.manifest.name}/{self.manifest.version}"

    @property
    def files(self) -> tuple[FileSpec, ...]:
        return tuple(self.manifest.all_files.values())


@Parameter(name="*")
@dataclass(frozen=True)
class Confirmation:
    """How the question is answered: by whoever sits at the terminal, or beforehand, for scripts."""

    digest: Annotated[
        str | None, Parameter(help="The SHA-256 of its manifest, as its publisher tells it; another one is refused.", show_default=False)
    ] = None
    yes: Annotated[bool, Parameter(help="Ask nothing; needs --digest.")] = False

    def ask(self, offered: Offered, what: str) -> None:
        """Return where the owner has confirmed the version.

        Args:
            what: is to be done with it, for the question.

        Raises:
            UserError: it is another one, or was not confirmed.
        """
        if self.yes and self.digest is None:
            raise UserError("--yes alone confirms nothing: give --digest too, the SHA-256 that whoever published the model tells you")
        if self.digest is not None and self.digest.lower() != offered.digest:
            raise UserError(f"--digest is {self.digest}, and that of {offered.version} is {offered.digest}: it is another model")
        if self.yes:
            return
        if not sys.stdin.isatty():
            raise UserError("nobody is here to be asked: give --yes and --digest, the SHA-256 that whoever published the model tells you")
        manifest = offered.manifest
        print(f"{offered.version}: {_shown(manifest.architecture)} on {_shown(manifest.dataset.name)}, made {_shown(manifest.created_at)}")
        for file in offered.files:
            print(f"  {file.file}, {file.size_bytes:,} bytes, sha256 {file.sha256}")
        print("A model file is code, which runs here with your rights. Compare the digest with what its publisher says.")
        print(f"sha256 of its manifest: {offered.digest}")  # last, and behind nothing that a terminal could take for a command
        if input(f"Do you know where it is from, and {what}? [yes/no] ").strip() != "yes":
            raise UserError("it was not confirmed, and nothing was changed; the answer is yes, in full, or no")


def _shown(text: str) -> str:
    """A field that its publisher filled as he liked, as text that a terminal can only show."""
    return ascii(text)[:80]
