"""A mark in the stream of transactions, and the proof that every transaction older than it has ended.

A transaction that has written has a transaction id (xid), handed out in rising order. A fold knows its own xid and the
lowest xid that was still running when it began (xmin). Whatever was written or read before a mark was set belongs to a
transaction with an xid below that of the first fold after the mark. So a later fold whose xmin is at or above that xid
has seen all of it.

A snapshot's xmax would not do as the mark: it is one above the highest *completed* xid, and running transactions may
have higher ones.
"""


class XminHorizon:
    """A mark, set when this is created or when `mark` is called."""

    def __init__(self) -> None:
        self._xid: int | None = None
        self.reached = False
        """A fold has seen everything that was written by transactions from before the mark."""

    def mark(self) -> None:
        """Set the mark here and now."""
        self._xid = None
        self.reached = False

    def folded(self, xid: int, xmin: int) -> bool:
        """Record a fold by its own xid and the lowest xid that was running when it began. Return `reached`."""
        if self._xid is None:
            self._xid = xid
        elif xmin >= self._xid:
            self.reached = True
        return self.reached
