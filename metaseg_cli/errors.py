"""What can go wrong through no fault of the program.

    MetasegError            one message for the user, exit code 1
    ├── ConfigError         a setting that cannot be used
    ├── InputError          a file or folder that cannot be used
    ├── ModelFileError      a model file that cannot be used
    └── Interrupted         stopped by Ctrl-C or SIGTERM, with everything saved (exit code 130)

Rooms raise these with cause and remedy; ``cli.main`` alone prints them. Any other exception is a bug
of ours and keeps its traceback.
"""

from __future__ import annotations


class MetasegError(Exception):
    """A user's mistake or an unusable input: *what* is wrong, *where*, and what to do (*remedy*)."""

    def __init__(self, what: str, *, where: object = None, remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, where, remedy
        self.told = False  # another process of the same training has said it already
        super().__init__(what, where, remedy)

    def __str__(self) -> str:
        located = f"{self.where}: {self.what}" if self.where is not None else self.what
        return f"{located}; {self.remedy}" if self.remedy else located


class ConfigError(MetasegError):
    """A setting that cannot be used."""


class InputError(MetasegError):
    """A file or folder that cannot be used."""


class ModelFileError(MetasegError):
    """A model file that cannot be used."""


class Interrupted(MetasegError):
    """Stopped on request; says what was saved and how to go on. Exit code 130."""


def first_line(error: BaseException, most: int = 120) -> str:
    """What an exception says, in a line of at most *most* characters; its kind when it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]
