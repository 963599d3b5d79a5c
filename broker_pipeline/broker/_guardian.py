"""Runs one child process and ends it when the process that asked for it ends, however it ends.

    python -I -S _guardian.py PARENT_PID GRACE_S COMMAND...

Run by path, with the standard library alone: it starts in 15 ms and works whatever is installed.
It writes the child's process id as one line to stdout, and ends the child (SIGTERM, then SIGKILL
after GRACE_S seconds) when its stdin has anything to read - the parent asks, or its end of the
pipe was closed by its death - or when its own parent process is not PARENT_PID any more.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading

# A pipe alone would do if its other end were never inherited; a forked child of the parent does
# inherit it, and would keep the server alive. So the parent's id is looked at too, this often.
PARENT_CHECK_S = 0.25


def _exit_with(child: subprocess.Popen[bytes]) -> None:
    code = child.wait()
    os._exit(code if code >= 0 else 128 - code)


def main(arguments: list[str]) -> None:
    parent, grace_s, command = int(arguments[0]), float(arguments[1]), arguments[2:]
    # Ctrl-C is for the parent, which drains first and then asks.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    os.write(1, b"%d\n" % child.pid)
    waiter = threading.Thread(target=_exit_with, args=(child,), name="guardian-wait")
    waiter.start()
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while os.getppid() == parent and not select.select([0], [], [], PARENT_CHECK_S)[0]:
        pass
    child.terminate()
    waiter.join(grace_s)
    child.kill()
    waiter.join()


if __name__ == "__main__":
    main(sys.argv[1:])
