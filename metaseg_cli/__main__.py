"""``python -m metaseg_cli``, and the command ``metaseg``: from its first moment on, a signal to stop is understood."""

from __future__ import annotations

import signal
import sys
from types import FrameType

_stopped = False


def _stop(number: int, frame: FrameType | None) -> None:
    global _stopped  # noqa: PLW0603  what a library made of the exception shows only here
    _stopped = True
    raise KeyboardInterrupt


def main() -> None:
    """Run the command line. Ctrl-C and SIGTERM alike end it with 130 and a word on what is kept."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    try:
        from metaseg_cli.cli import main as command_line

        code = command_line()
    except KeyboardInterrupt:
        _say_stopped()
    except SystemExit as error:  # from the parser
        if _stopped and error.code:
            _say_stopped()
        raise
    except BaseException:
        if _stopped:  # in the middle of an import, say, libraries make other errors of it
            _say_stopped()
        raise
    finally:
        _ignore_signals()  # all is said and done: what is left is to clear away
        # Where the interruption met code that Python compiles from text, as dataclasses do, Python would in the end die
        # of SIGINT all the same; it forgets that with the next such code.
        exec("")
    sys.exit(130 if _stopped and code else code)


def _ignore_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _say_stopped() -> None:
    _ignore_signals()
    print("metaseg: interrupted; run the same command again", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
    main()
