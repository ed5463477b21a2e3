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


def _stop_again(lost: sys.UnraisableHookArgs) -> None:
    """Python drops what is raised where it calls back on its own, as when an object dies: stop a moment later."""
    if issubclass(lost.exc_type, KeyboardInterrupt) and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, 0.02)
    else:
        sys.__unraisablehook__(lost)


def main() -> None:
    """Run the command line. Ctrl-C and SIGTERM alike end it with 130 and a word on what is kept."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as under nohup
            signal.signal(number, _stop)
    sys.unraisablehook = _stop_again
    try:
        from metaseg_cli.cli import main as command_line

        code = command_line()
    except KeyboardInterrupt:
        _say_stopped()
    except SystemExit as error:  # from the parser
        if _stopped and error.code:
            _say_stopped()
        raise
    except Exception:  # a library that is stopped while it is imported may raise anything
        if not _stopped:
            raise
        _say_stopped()
    finally:
        _ignore_signals()  # all is said and done: what is left is to clear away
        # Where the interruption met code that Python compiles from text, as dataclasses do, Python would in the end die
        # of SIGINT all the same; it forgets that with the next such code.
        exec("")
    if _stopped and code == 1:  # what was said is what a library made of it
        _say_stopped()
    sys.exit(code)


def _ignore_signals() -> None:
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _say_stopped() -> None:
    _ignore_signals()
    print("metaseg: interrupted; what is finished is kept; run the same command again", file=sys.stderr)
    sys.exit(130)


if __name__ == "__main__":
    main()
