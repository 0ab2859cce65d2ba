"""The rules of the protocol, each taken out by itself. The simulation must find every one of them.

A mutation is a small edit of one method, made while a run lasts. `why_not_found` explains the few that cannot be found,
because another rule covers for them.
"""

import inspect
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.simulation.exporter import Session
from tests.simulation.weather import FAULTS, FLOOD, FORGERY

from mfg_notify.core.board import LastChanges
from mfg_notify.core.counters import Counters
from mfg_notify.core.ledger import Ledger
from mfg_notify.core.live_state import LiveState, RecentActivity
from mfg_notify.core.notify_mode import NotifyMode
from mfg_notify.core.scan_horizon import ScanHorizon
from mfg_notify.core.schedule import Schedule
from mfg_notify.core.visibility import Visibility
from mfg_notify.core.xmin_horizon import XminHorizon

NONE: tuple[str, ...] = ()
BREAKS = ("disconnect",)
TAKEOVERS = ("pause", "disconnect", "crash", "hand over")
HANDOVERS = ("hand over",)
IN_PLACE = ("restore in place",)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A rule that is taken out: in the source of a method of `target`, `old` becomes `new`."""

    rule: str
    target: type
    method: str
    old: str
    new: str
    faults: tuple[str, ...] = FAULTS
    """Those that make the difference, so that a short run finds it."""
    why_not_found: str = ""
    seed: int = 0
    """One that is known to find it."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Take the rule out for the duration of the block."""
        original = self.target.__dict__[self.method]
        setattr(self.target, self.method, self._mutated(original))
        try:
            yield
        finally:
            setattr(self.target, self.method, original)

    def _mutated(self, original: object) -> object:
        method: Any = original.fget if isinstance(original, property) else original
        source = textwrap.dedent(inspect.getsource(method))
        if source.count(self.old) != 1:
            raise ValueError(f"{self.rule}: the source of {self.target.__name__}.{self.method} has changed")
        namespace = dict(vars(sys.modules[self.target.__module__]))
        exec(source.replace(self.old, self.new), namespace)  # noqa: S102 - the source is our own
        return namespace[self.method]


MUTATIONS = (
    # --------------------------------------------------------------------------------------------- the lease --
    Mutation(
        "a lease that may have expired proves nothing",
        Ledger, "proves_lead", "self._proven_at + self._tuning.lease_duration", "math.inf", TAKEOVERS, seed=16,
    ),
    Mutation(
        "a lease that is given back proves nothing",
        Ledger, "release_lead", "self._proven_at = -math.inf", "pass", ("stop",), seed=401,
    ),
    Mutation(
        "a standby waits until the lease expires",
        Session, "_heartbeat", "starting = not self.exporter.has_stood_by", "starting = True", TAKEOVERS, seed=2,
    ),
    # ---------------------------------------------------------------------------------------------- counters --
    Mutation(
        "a payload is trusted only once the barrier has come back",
        Counters, "synced", " and self._barrier >= self._resynced_at", "", BREAKS, seed=20,
    ),
    Mutation(
        "an event that was settled before it was announced is remembered",
        Counters, "confirm", "if number > self._barrier:", "if False:", NONE, seed=12,
    ),
    Mutation(
        "what the barrier has passed is not remembered any longer",
        Counters, "receive_barrier", "if at > number", "", NONE,
    ),
    Mutation(
        "an event whose barrier came before the reply is not remembered",
        Counters, "confirm", "if number > self._barrier:", "if True:", NONE,
    ),
    Mutation(
        "a payload that is pending already counts nothing",
        Counters, "announce", "if event.id in self._settled_before_announced or event.id in self._pending:",
        "if event.id in self._settled_before_announced:", FORGERY, seed=31,
    ),
    Mutation(
        "a fold confirms what is pending",
        Counters, "confirm", "self._pending.pop(event.id, None)", "self._pending.get(event.id)", NONE,
    ),
    Mutation(
        "a gap in the generations requires the totals",
        Counters, "follows", " and generation == self._generation + 1", "", HANDOVERS, seed=41,
    ),
    Mutation(
        "a resync over a gap clears what is pending",
        Counters, "resync", "self._pending.clear()", "pass", TAKEOVERS, seed=95,
    ),
    Mutation(
        "a resync without a gap leaves the rest pending",
        Counters, "resync", "if not self.has_gap(generation):", "if False:", BREAKS, seed=20,
    ),
    Mutation(
        "a resync confirms what the fold before it has taken",
        Counters, "resync", "self._pending.pop(event.id, None)", "pass", BREAKS,
    ),
    Mutation(
        "a resync replaces the totals",
        Counters, "resync", "self._settled = totals",
        "self._settled = self._settled if self._settled.copy() else totals", TAKEOVERS,
    ),
    Mutation(
        "a lost connection makes the last generation unknown",
        Counters, "disconnect", "self._generation = None", "pass", ("restore", "hand over"), seed=36,
    ),
    Mutation(
        "a rewind is noticed",
        Counters, "is_rewind", "generation <= max(self._latest, self._seen)", "False", IN_PLACE,
    ),
    Mutation(
        "a standby adds only events that the totals cannot have",
        Counters, "hear", " or self._visibility.sees(event.xid)", "", ("stall", "disconnect", "hand over"),
    ),
    Mutation(
        "a standby adds what was running when it read the totals",
        Counters, "hear", "self._visibility.sees(event.xid)", "event.xid < self._visibility.next_xid", TAKEOVERS,
    ),
    Mutation(
        "a standby reads what it has not heard",
        Counters, "follow", "in waiting.unheard", "in ()", TAKEOVERS,
    ),
    Mutation(
        "a standby adds an event once",
        Counters, "hear", " or event.id in self._pending", "", FORGERY,
        why_not_found="an event that is heard again replaces itself",
    ),
    Mutation(
        "a snapshot tells nothing in the next session",
        Counters, "disconnect", "self._visibility = None", "pass", seed=343760567,
    ),
    Mutation(
        "a standby forgets what it has heard and others have folded",
        Counters, "follow", "if waiting.may_add(announced.event):", "if True:", TAKEOVERS,
    ),
    Mutation(
        "what a standby has heard is not counted again when it leads",
        Ledger, "_expect", "self._counters.forget_pending()", "pass", TAKEOVERS,
        why_not_found="the resync after a takeover forgets it, too",
    ),
    Mutation(
        "generations of another server or timeline continue none",
        Counters, "expect_gap", "self._continuous = False", "pass", ("fail over", "hand over"),
        why_not_found="takes a promotion that loses exactly as many folds as others make; test_ledger.py has it",
    ),
    Mutation(
        "unconfirmed events are discarded",
        Counters, "discard_unconfirmed", "del self._pending[number]", "pass", FORGERY,
    ),
    Mutation(
        "only what was pending before the fold can be unconfirmed",
        Counters, "discard_unconfirmed", "suspects & self._pending.keys()", "self.pending()", NONE,
    ),
    Mutation(
        "an event with other contents than announced is settled as the journal has it",
        Counters, "confirm", "if announced is None or announced.event != event:", "if announced is None:", FORGERY,
        seed=31,
    ),
    Mutation(
        "what a mismatched payload did to the live rows is undone",
        Counters, "confirm", "self._mismatched += announced is not None", "pass", FORGERY, seed=31,
    ),
    # ------------------------------------------------------------------------------------------------ ledger --
    Mutation(
        "a difference after a takeover is not a missed event",
        Ledger, "lead", "self._live.ignore_next_difference()", "pass", TAKEOVERS, seed=1,
    ),
    Mutation(
        "nothing is reconciled before the journal is drained after a takeover",
        Ledger, "lead", "self._leading, self._drained = True, False", "self._leading = True", TAKEOVERS,
    ),
    Mutation(
        "a standby shows nothing",
        Ledger, "step_down", "self._presentable = self._drained = False", "self._drained = False", TAKEOVERS, seed=2,
    ),
    Mutation(
        "a lost connection ends the reconciliation that is under way",
        Ledger, "_forget_work_under_way", "self._snapshot = self._snapshot_barrier = None", "pass", BREAKS,
    ),
    Mutation(
        "suspects are taken when the fold begins",
        Ledger, "_confirm_drained", "self._suspects", "self._counters.pending()", NONE,
    ),
    Mutation(
        "suspects are taken anew for each fold",
        Ledger, "begin_fold", "self._suspects = ", "self._suspects = self._suspects or ", FORGERY,
    ),
    Mutation(
        "a payload changes the live rows",
        Ledger, "announce", "self._live.apply(event)", "pass", NONE,
    ),
    Mutation(
        "a fold changes the live rows",
        Ledger, "_complete", "self._live.apply(event)", "pass", NONE,
    ),
    Mutation(
        "unconfirmed events ask for another snapshot",
        Ledger, "_confirm_drained", "self._live.request_resync()", "pass", FORGERY,
    ),
    Mutation(
        "unconfirmed events are no longer among the last changes",
        Ledger, "_confirm_drained", "self._changes.forget_unconfirmed(self._counters.pending())", "pass", FORGERY,
    ),
    Mutation(
        "a fold makes announced changes true",
        LastChanges, "settle", "self._unconfirmed.discard(event.id)", "pass", NONE,
    ),
    Mutation(
        "a snapshot waits for a barrier",
        Ledger, "finish_reconciliation", " or self._counters.barrier < barrier", "", NONE,
        why_not_found="the fold that has drained the journal after the snapshot has applied everything that it shows",
    ),
    Mutation(
        "a snapshot waits for the barrier of a fold that begins after it",
        Ledger, "reconcile", "self._snapshot_barrier = snapshot, None",
        "self._snapshot_barrier = snapshot, self._counters._latest", NONE,
    ),
    Mutation(
        "a snapshot waits until the journal is drained",
        Ledger, "_complete", "self._confirm_drained(fold) if fold.drained else 0", "self._confirm_drained(fold)",
        ("pause", "disconnect", "stall"), seed=1,
    ),
    Mutation(
        "folds of another exporter ask for another snapshot",
        Ledger, "resync", "self._live.request_resync()", "pass", HANDOVERS, seed=41,
    ),
    Mutation(
        "a barrier says nothing about what another exporter has folded after it",
        Ledger, "resync", "fold.number if totals.generation == fold.generation else fold.number + 1", "fold.number",
        TAKEOVERS,
        why_not_found="takes a takeover between a fold and the reading of the totals; tests/unit/test_ledger.py has it",
    ),
    Mutation(
        "no two folds of an exporter have the same number",
        Ledger, "begin_fold", "self._folds += 1", "self._folds = (self._counters._generation or 0) + 1",
        ("restore in place", "stall"),
    ),
    Mutation(
        "lower totals show a rewind",
        Ledger, "resync", "not self._rewind_known and self._counters.exceed(totals.counters)", "False", IN_PLACE,
        why_not_found="here the generation goes back in every rewind; test_rewinds.py has one in which it rises",
    ),
    Mutation(
        "a rewind asks for another snapshot",
        Ledger, "_rewind", "self._live.request_resync()", "pass", IN_PLACE,
        why_not_found="the resync that follows finds a gap in the generations and asks for one, too",
    ),
    Mutation(
        "a snapshot from before a rewind is dropped",
        Ledger, "_rewind", "self._snapshot = self._snapshot_barrier = None", "pass", ("restore in place", "stall"),
        why_not_found="another one is asked for, and replaces it",
    ),
    Mutation(
        "recent activity comes with the totals",
        Ledger, "resync", "self._activity = totals.activity", "pass", TAKEOVERS,
    ),
    Mutation(
        "recent activity comes with each fold",
        Ledger, "settle", "self._activity.add(fold.settlement)", "pass", NONE,
    ),
    Mutation(
        "the latest time counts, whatever order the events have",
        RecentActivity, "add", "max(at, self.latest.get(place, at))", "at", NONE,
    ),
    Mutation(
        "a fold after a resync is followed by another",
        Ledger, "_complete", "settled=fold.drained and followed", "settled=fold.drained", HANDOVERS,
        why_not_found="a payload that is not counted asks for that fold",
    ),
    Mutation(
        "a fold that shows a rewind does not count as drained",
        Ledger, "settle", "fold = replace(fold, drained=False)", "pass", IN_PLACE,
        why_not_found="the resync over the rewind has left nothing pending that could be discarded",
    ),
    # -------------------------------------------------------------------------------------------- live state --
    Mutation(
        "an event that is older than the row is ignored",
        LiveState, "apply",
        "if event.id <= max(self._last.get(place, 0), self._truncated.get(table, 0)):", "if False:", NONE, seed=1,
    ),
    Mutation(
        "what arrives while a snapshot is being read is applied again",
        LiveState, "apply", "self._recorded.append(event)", "pass", NONE,
    ),
    Mutation(
        "only what the snapshot does not show is applied again",
        LiveState, "reconcile", "if not sees(event.xid):", "if True:", NONE,
        why_not_found="what it shows comes from events with higher ids, which are applied again after them",
    ),
    Mutation(
        "what the snapshot does not show because it was running is applied again",
        Visibility, "sees", " and xid not in self.in_progress", "", NONE, seed=1,
    ),
    Mutation(
        "a TRUNCATE that arrives late leaves the rows that are newer",
        LiveState, "apply", "if self._last.get((table, str(key)), 0) < event.id", "", NONE, seed=5,
    ),
    Mutation(
        "an event from before a TRUNCATE brings no row back",
        LiveState, "apply", "max(self._last.get(place, 0), self._truncated.get(table, 0))",
        "self._last.get(place, 0)", NONE,
        why_not_found="the fold that brings the TRUNCATE again takes the row away before the next snapshot",
    ),
    Mutation(
        "a pipeline that becomes live again asks for its factories",
        LiveState, "apply",
        "if isinstance(change, PipelineChange) and stays and change.old and key not in self._pipelines:",
        "if False:", NONE,
    ),
    # ------------------------------------------------------------------------------------------- notify mode --
    Mutation(
        "polling ends only when every possibly silent writer has ended",
        NotifyMode, "may_sleep", " and self._horizon.reached", "", NONE, seed=18,
    ),
    Mutation(
        "each switch of the triggers begins a new wait for silent writers",
        NotifyMode, "record_applied", "self._horizon.mark()", "pass", NONE, seed=18,
    ),
    Mutation(
        "the horizon waits for the oldest running transaction",
        XminHorizon, "folded", "elif xmin >= self._xid:", "else:", NONE,
    ),
    Mutation(
        "the mark is a transaction id, not the end of a snapshot",
        XminHorizon, "folded", "self._xid = xid", "self._xid = xmin", NONE,
    ),
    Mutation(
        "a heartbeat notices that another has switched the triggers",
        NotifyMode, "invalidate", "self._applied = None", "pass", ("pause", "stop", "hand over"), seed=7,
    ),
    Mutation(
        "the first fold sets the mode of the triggers",
        NotifyMode, "needs_update", "self._applied is not self.wants_polling",
        "(self._applied or False) is not self.wants_polling", ("stop", "crash", "pause"), seed=1,
    ),
    # ------------------------------------------------------------------------------------------ scan horizon --
    Mutation(
        "ids are given up only when every transaction that may have one has ended",
        ScanHorizon, "folded", "if self._horizon.folded(xid, xmin) and drained:", "if drained:", NONE,
    ),
    Mutation(
        "ids are given up only two steps after they were handed out",
        ScanHorizon, "folded", "self.folded_up_to = self._next_folded_up_to", "self.folded_up_to = last_id", NONE,
    ),
    Mutation(
        "ids are given up only when the journal is drained",
        ScanHorizon, "folded", " and drained", "", ("pause", "disconnect", "stall"), seed=15,
    ),
    Mutation(
        "a rewind starts the scan horizon anew",
        ScanHorizon, "reset", "self.folded_up_to = self._next_folded_up_to = -1", "pass", IN_PLACE, seed=2,
    ),
    # ---------------------------------------------------------------------------------------------- schedule --
    Mutation(
        "a fold that left something behind is followed by another at once",
        Schedule, "fold_ends", "if settled:", "if True:", ("disconnect", "pause"), seed=4,
    ),
    Mutation(
        "a request that comes during a fold is kept",
        Schedule, "fold_ends", "min(max(self._fold_due, self._fold_not_before), now + poll_delay)", "now + poll_delay",
        NONE, seed=1,
    ),
    Mutation(
        "a fold is polled for",
        Schedule, "fold_ends", "min(max(self._fold_due, self._fold_not_before), now + poll_delay)",
        "max(self._fold_due, self._fold_not_before)", NONE,
    ),
    Mutation(
        "a new leader folds at once",
        Schedule, "lead", "self._fold_due = self._reconcile_due = ", "", HANDOVERS,
        why_not_found="takes two takeovers without an event between them; tests/unit/test_schedule.py has it",
    ),
    Mutation(
        "counted payloads are settled soon",
        Schedule, "announced", "self.request_fold(now, 0.0 if many else self._tuning.confirming_fold_delay)", "pass",
        NONE,
    ),
    Mutation(
        "an empty fold is followed by a pause",
        Schedule, "fold_ends", "if empty else 0.0", "if False else 0.0", FLOOD, seed=1,
    ),
    Mutation(
        "a snapshot is followed by the fold that it waits for",
        Schedule, "snapshot_ends", "self._fold_due = min(self._fold_due, max(now, self._pause_ends))",
        "pass", NONE,
    ),
    Mutation(
        "a snapshot that waits for its barrier is not followed by another",
        Schedule, "_snapshot_due", "if situation.reconciling or not situation.drained:", "if not situation.drained:",
        NONE,
        why_not_found="the next one is due an interval later; tests/unit/test_schedule.py asks for it",
    ),
    Mutation(
        "the backlog is folded before a snapshot is read",
        Schedule, "_snapshot_due", " or not situation.drained", "", ("pause", "disconnect", "stall"),
    ),
    Mutation(
        "heartbeats come first",
        Schedule, "next_step", "if now >= self._heartbeat_due:", "if now >= self._heartbeat_due + 3:", NONE,
    ),
    # --------------------------------------------------------------- what the session does between its calls --
    Mutation(
        "a payload that was not counted asks for a fold",
        Session, "_announce", "self.schedule.request_fold(now, tuning.deferred_fold_delay)", "pass", NONE,
    ),
    Mutation(
        "a new leader does not know the mode of the triggers",
        Session, "_heartbeat", "reset()\n        self.mode.invalidate()", "reset()", HANDOVERS, seed=1732,
    ),
    Mutation(
        "a new leader starts the scan horizon anew",
        Session, "_heartbeat", "self.horizon.reset()", "pass", ("hand over", "restore in place"), seed=1254,
    ),
    Mutation(
        "a full scan while reconciling catches what the scan horizon has missed",
        Session, "_fold", "-1 if ledger.reconciling else self.horizon.folded_up_to",
        "self.horizon.folded_up_to",
        why_not_found="a safety net: no step of the protocol relies on it",
    ),
)  # fmt: skip
BY_RULE = {mutation.rule: mutation for mutation in MUTATIONS}
