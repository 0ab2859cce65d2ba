"""Which transactions a snapshot of the database shows."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Visibility:
    """What `pg_current_snapshot()` says: transaction ids (xids), comparable on one timeline of one server."""

    next_xid: int
    """One above the highest xid that had ended."""
    in_progress: frozenset[int]
    """Those below it that had not."""

    def sees(self, xid: int) -> bool:
        """Tell whether the snapshot shows what this transaction has done, given that it has committed."""
        return xid < self.next_xid and xid not in self.in_progress
