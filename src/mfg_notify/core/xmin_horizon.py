"""What must be over: a line between transactions, and when all on its old side have ended.

A transaction that has written has a number, given out in rising order. A fold knows its own number, and the lowest one
that was still open when it began to look. So what had been written or seen before a line was drawn belongs to numbers
below that of the first fold after it; and a fold that begins when nothing so low is open any more has seen it all.

(The highest number that a snapshot knows would not do for a line: it is of a transaction that has ended, and open ones
may be above it.)
"""


class XminHorizon:
    """A line that is drawn when this is made, or `draw` is called."""

    def __init__(self) -> None:
        self._number: int | None = None
        self.passed = False
        """A fold has seen everything that was written by transactions from before the line."""

    def draw(self) -> None:
        """Draw the line anew: here and now."""
        self._number = None
        self.passed = False

    def folded(self, xid: int, oldest: int) -> bool:
        """Take note of a fold: its number, and the lowest one open when it began to look. Return `passed`."""
        if self._number is None:
            self._number = xid
        elif oldest >= self._number:
            self.passed = True
        return self.passed
