#!/usr/bin/env python3
"""What a person sees: `run` and `status --watch` beside it, in terminals of a given size, as text.

    python scripts/experiments/terminal_session.py CONFIG [--columns 80] [--lines 30] [--at 3 8 15] [--interrupt 12]

Both commands run on pseudo-terminals, whose output a terminal emulator (pyte) draws. At each of the given seconds, and at
the end, both screens are printed. --narrow S W: the terminals become W columns wide after S seconds. --interrupt S: Ctrl-C.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pyte


class Terminal:
    """A command on a pseudo-terminal, and the screen that it draws."""

    def __init__(self, words: list[str], columns: int, lines: int) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.pid, self._file = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "xterm-256color"
            os.execv(sys.executable, [sys.executable, "-m", "pipeline", *words])
        self._resize(columns, lines)
        self.code: int | None = None

    def _resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, columns: int) -> None:
        """Make it narrower or wider."""
        self._resize(columns, self.screen.lines)
        self.screen.resize(columns=columns)

    def press_ctrl_c(self) -> None:
        """What the keyboard would send."""
        os.write(self._file, b"\x03")

    def read(self, seconds: float) -> None:
        """Draw what comes within some seconds."""
        if self.code is not None:
            return
        if select.select([self._file], [], [], seconds)[0]:
            try:
                self._stream.feed(os.read(self._file, 65536))
            except OSError:  # Linux: the other end is closed
                self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def show(self, title: str) -> None:
        """Print the screen."""
        print(f"--- {title}{'' if self.code is None else f', exit code {self.code}'}")
        text = [line.rstrip() for line in self.screen.display]
        while text and not text[-1]:
            text.pop()
        print("\n".join(f"| {line}" for line in text))


def main() -> None:
    """The session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("--columns", type=int, default=80)
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--at", type=float, nargs="*", default=[])
    parser.add_argument("--interrupt", type=float)
    parser.add_argument("--narrow", type=float, nargs=2)
    parser.add_argument("--set", action="append", default=[])
    given = parser.parse_args()
    with TemporaryDirectory(prefix="em-pipeline-") as folder:
        run = os.path.relpath(Path(folder) / "photos")
        overrides = [word for one in given.set for word in ("--set", one)]
        terminals = {"run": Terminal(["run", given.config, "--output", run, *overrides], given.columns, given.lines)}
        began, moments = time.monotonic(), sorted(given.at)
        while any(one.code is None for one in terminals.values()):
            for one in terminals.values():
                one.read(0.02)
            now = time.monotonic() - began
            if "status" not in terminals and (Path(run) / "events.jsonl").exists():
                terminals["status"] = Terminal(["status", run, "--watch"], given.columns, given.lines)
            if moments and now > moments[0]:
                for name, one in terminals.items():
                    one.show(f"{name} after {moments[0]:g} s")
                moments.pop(0)
            if given.narrow and now > given.narrow[0]:
                for one in terminals.values():
                    one.resize(int(given.narrow[1]))
                given.narrow = None
            if given.interrupt and now > given.interrupt:
                terminals["run"].press_ctrl_c()
                given.interrupt = None
        for name, one in terminals.items():
            one.show(f"{name} at the end")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    main()
