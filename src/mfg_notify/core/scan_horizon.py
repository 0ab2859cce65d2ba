"""Which part of the journal a fold need not read again: ids that can never come up in it any more.

Events are folded as they commit, not in the order of their ids, so an id below the highest folded one may still come
up. It can no longer once every transaction that had been given an id up to it has ended, and a later fold has drained
the journal. This module decides when that is proved. It never talks to the database.
"""

from mfg_notify.core.xmin_horizon import XminHorizon


class ScanHorizon:
    """The id up to which the index of the journal holds only dead rows."""

    def __init__(self) -> None:
        self.folded_up_to = -1
        """No event with this id or a lower one will ever be in the journal again."""
        self._next_folded_up_to = -1
        """Candidate for `folded_up_to`; promoted when every transaction older than it has ended."""
        self._horizon = XminHorizon()

    def folded(self, xid: int, xmin: int, *, drained: bool, last_id: int) -> None:
        """Record a fold by its own xid, the lowest xid that was running and the last id that was handed out by then.

        `drained` tells that it left nothing behind that was visible when it began.
        """
        # A transaction that was given an event id had a transaction id by then.
        if self._horizon.folded(xid, xmin) and drained:
            self.folded_up_to = self._next_folded_up_to
            self._next_folded_up_to = last_id
            self._horizon.mark()

    def reset(self) -> None:
        """Start anew: the database may have been rewound, so ids may be handed out a second time."""
        self.folded_up_to = self._next_folded_up_to = -1
        self._horizon.mark()
