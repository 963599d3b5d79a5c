"""A program in a terminal of its own, and a person who reads and types."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping
from pathlib import Path

BOUND_S = 40.0
_STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """A running program that believes that a person sits before it; a context.

    Attributes:
        text: what it has written so far, without colours.
    """

    def __init__(
        self, *words: str, cwd: Path, environment: Mapping[str, str], columns: int = 80
    ) -> None:
        self.text = ""
        self._seen = 0
        self._side, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            words,
            cwd=cwd,
            env={**environment, "TERM": "xterm", "COLUMNS": str(columns)},
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(inner)

    def reads(self, text: str) -> str:
        """Wait until it writes this after what was read before; what it wrote up to there."""
        until = time.monotonic() + BOUND_S
        while (at := self.text.find(text, self._seen)) < 0:
            if not self._read(until - time.monotonic()):
                raise AssertionError(f"it did not write {text!r}:\n{self.text[self._seen :]}")
        found = self.text[self._seen : at + len(text)]
        self._seen = at + len(text)
        return found

    def reads_match(self, pattern: str) -> str:
        """The same for a regular expression; what it wrote, up to what was read with it."""
        until = time.monotonic() + BOUND_S
        while not re.search(pattern, self.text[self._seen :]):
            if not self._read(until - time.monotonic()):
                raise AssertionError(f"it did not write {pattern!r}:\n{self.text[self._seen :]}")
        found, self._seen = self.text[self._seen :], len(self.text)
        return found

    def answers(self, line: str, prompt: str = "(Pdb) ") -> None:
        """A line, when it asks for one."""
        self.reads(prompt)
        self.types(line)

    def types(self, line: str) -> None:
        """A line, with return."""
        os.write(self._side, f"{line}\n".encode())

    def presses(self, key: str) -> None:
        """A key, such as Ctrl-C: "\\x03"."""
        os.write(self._side, key.encode())

    def presses_until(self, key: str, text: str) -> None:
        """A key, again and again until it writes this: Ctrl-C in the moment before readline waits
        is taken in only with the next key."""
        until = time.monotonic() + BOUND_S
        while text not in self.text[self._seen :]:
            assert time.monotonic() < until, f"{key!r} does nothing:\n{self.text}"
            self.presses(key)
            while select.select([self._side], [], [], 1.0)[0] and self._read(1.0):
                pass

    def ends(self) -> int:
        """Read on until it ends; its exit code."""
        until = time.monotonic() + BOUND_S
        while self._read(until - time.monotonic()):
            pass
        return self.process.wait(max(0.0, until - time.monotonic()))

    def _read(self, seconds: float) -> bool:
        """Read what there is, within a bound; False at the end."""
        readable, _, _ = select.select([self._side], [], [], max(0.0, seconds))
        if not readable:
            raise AssertionError(f"nothing more came within {BOUND_S} s:\n{self.text}")
        try:
            raw = os.read(self._side, 65536)
        except OSError:  # Linux says so at the end
            return False
        self.text += _STYLES.sub("", raw.decode(errors="replace")).replace("\r", "")
        return bool(raw)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(BOUND_S)
        os.close(self._side)
