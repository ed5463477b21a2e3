"""On PYTHONPATH, ends a program at one of its own writes: METASEG_FAULT="SIGNAL:NUMBER:MILLISECONDS:FOLDER".

The signal is sent MILLISECONDS after the NUMBERth time that a process of the program opens a file under FOLDER for
writing, renames, removes or makes one there. With METASEG_FAULT_COUNT=FILE their number is written to FILE instead.
Workers send it to the process that the user started.
"""

import atexit
import os
import sys
import threading

_EVENTS = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}


def _install(signal: int, number: int, milliseconds: float, folder: str, count_in: str) -> None:
    main = int(os.environ.setdefault("METASEG_FAULT_PID", str(os.getpid())))
    seen = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        if event == "open":
            flags = arguments[2]
            if not isinstance(flags, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                return
        elif event not in _EVENTS:
            return
        if not isinstance(arguments[0], (str, bytes)):
            return
        if not os.path.abspath(os.fsdecode(arguments[0])).startswith(folder):
            return
        seen += 1
        if seen != number or count_in:
            return
        if milliseconds:
            threading.Timer(milliseconds / 1000, os.kill, (main, signal)).start()
        else:
            os.kill(main, signal)

    if count_in and main == os.getpid():

        def write() -> None:
            with open(count_in, "w") as file:
                file.write(str(seen))

        atexit.register(write)
    sys.addaudithook(hook)


if os.environ.get("METASEG_FAULT"):
    _signal, _number, _milliseconds, _folder = os.environ["METASEG_FAULT"].split(":", 3)
    _install(int(_signal), int(_number), float(_milliseconds), _folder, os.environ.get("METASEG_FAULT_COUNT", ""))
