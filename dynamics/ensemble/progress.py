"""Progress of a run over chunks, on the host."""

import sys
import time


class Progress:
    """One line on stderr, rewritten after each chunk: members done, failures so far, members per second, time left.

    Where stderr is no terminal a line is written only when a tenth of the members more is done.
    """

    def __init__(self, total: int, shown: bool):
        self.total, self.shown = total, shown
        self.begin()

    def begin(self, done: int = 0, failed: int = 0) -> None:
        """Start the clock; `done` members were there already, `failed` of them not well."""
        self.done, self.failed, self.fresh = done, failed, 0
        self.since, self.written = time.perf_counter(), 0.0

    def update(self, members: int, failed: int) -> None:
        """`members` more are finished, `failed` of them not well."""
        self.done, self.failed, self.fresh = self.done + members, self.failed + failed, self.fresh + members
        if not self.shown:
            return
        last = self.done >= self.total
        terminal = sys.stderr.isatty()
        if not terminal and not last and self.done - self.written < self.total / 10:
            return
        self.written = self.done
        seconds = time.perf_counter() - self.since
        pace = self.fresh / seconds if seconds > 0 else 0.0
        left = (self.total - self.done) / pace if pace > 0 else 0.0
        text = f"{self.done}/{self.total} members, {self.failed} failed, {pace:.0f}/s, {left:.0f} s left "
        start, end = ("\r", "\n" if last else "") if terminal else ("", "\n")
        print(f"{start}{text}", end=end, file=sys.stderr, flush=True)
