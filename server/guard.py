"""python -m server.guard COMMAND…: run a command that ends when whoever started it ends, however that happens.

Knows processes only. Its standard input is a pipe that the server holds open and never writes to: the kernel closes it
when the server lets go of it, and also when the server is killed. Then the command and all that it started (compilers)
get SIGTERM, and SIGKILL after a grace time. Nothing in the command itself has to see to that, and no thread of the
server runs code between fork and exec, as a parent-death signal would need.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading

GRACE_S = 3.0  # for compilers to end by themselves; a draft that was begun stays, and the next build sweeps it away


def main(command: list[str]) -> int:
    """Run `command`; return its exit code, 128 + n if signal n ended it."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)  # noqa: S603 - the caller's own command
    threading.Thread(target=_end_with_input, args=(child,), daemon=True).start()
    code = child.wait()
    _signal_all(child, signal.SIGKILL)  # what it left behind would keep our output open
    return code if code >= 0 else 128 - code


def _end_with_input(child: "subprocess.Popen[bytes]") -> None:
    while os.read(0, 4096):
        pass
    _signal_all(child, signal.SIGTERM)
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        _signal_all(child, signal.SIGKILL)


def _signal_all(child: "subprocess.Popen[bytes]", number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # all have ended
        os.killpg(child.pid, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
