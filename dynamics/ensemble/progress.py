"""Progress of a run over chunks, on the host."""

import sys
import time


class Progress:
    """One line on stderr, rewritten after each chunk: members done, failures so far, members per second, time left."""

    def __init__(self, total: int, shown: bool):
        self.total, self.shown = total, shown
        self.begin = time.perf_counter()

    def update(self, done: int, failed: int) -> None:
        """Show that `done` members are finished, `failed` of them not well."""
        if not self.shown:
            return
        seconds = time.perf_counter() - self.begin
        pace = done / seconds if seconds > 0 else 0.0
        left = (self.total - done) / pace if pace > 0 else 0.0
        end = "\n" if done >= self.total else ""
        text = f"\r{done}/{self.total} members, {failed} failed, {pace:.0f}/s, {left:.0f} s left "
        print(text, end=end, file=sys.stderr, flush=True)
