"""A run: the weather by phases, the faults, and the invariants.

Phases follow each other: foul weather with a few kinds of faults; a quiet one in which nothing changes, at the end of
which everything must have converged; fair weather, in which every change must be shown soon; and so on. The
reconciliation interval is longer than every bound, so that it cannot help.

I1  totals and journal together are the truth
I2  an exposed counter does not fall, unless the database went back or a payload was forged
I3  no exposed counter is ahead of the truth, with the same exceptions
I5  the journal is empty soon after the trouble has ended, and everything that is shown is the truth
and: live rows are those of the game; a reconciliation corrects nothing if nothing was missed; nothing is unconfirmed if
everything was honest; in fair weather every change is shown within `SHOWN_WITHIN` seconds, heartbeats and folds are
punctual; and no session runs in circles.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.simulation.agenda import Agenda, InvariantError
from tests.simulation.database import (
    FOLD,
    LEASE_TIMEOUT,
    Database,
    Moment,
    Rows,
    State,
    Sums,
    Transaction,
    differences,
)
from tests.simulation.exporter import Exporter, Session, Watcher
from tests.simulation.game import Game
from tests.simulation.weather import FAULTS, Weather, fair, foul

from mfg_notify.core.board import says_something
from mfg_notify.core.events import Event
from mfg_notify.core.ledger import Fold, Outcome, Totals
from mfg_notify.core.live_state import LiveRows, RecentActivity
from mfg_notify.core.notify_mode import Policy
from mfg_notify.core.schedule import Step
from mfg_notify.core.tuning import Tuning

RECONCILE_INTERVAL = 60.0
CONVERGES_WITHIN = 25.0
"""Seconds from the end of all trouble: a lingering connection (4), a pause before connecting (2), and the pause after a
snapshot that took long (15), or else an expired lease (5), and a few steps."""
SHOWN_WITHIN = 1.7
"""Seconds in fair weather from a commit until its events are shown: the longest poll interval, and a few steps."""
PUNCTUAL = 0.6
"""Seconds in fair weather by which a step may be late because another is under way."""
ANSWER = 10.0
"""Seconds that an answer may be on its way, at most; after that the connection is given up."""
PAUSE = 10.0
"""Seconds between two transactions of a writer in a pause in which nothing wakes up an exporter."""
EMPTY_FOLDS = 10
"""In a second, at most, while nothing is polled for: twice what the pause after an empty fold allows, and a few."""
FULL_CHECK = 500
"""Steps between two full checks of I1."""
SAVES = 6
"""Older states that a restore may bring back."""


@dataclass(slots=True)
class Watch:
    """What the invariants remember of an exporter."""

    least: Sums = field(default_factory=dict)
    """What was exposed last and must not fall, not even over restarts."""
    doubtful_folds: int = 0
    """Settled folds after which numbers must be right again: the database went back, or a payload was forged."""
    doubtful_until: float = 0.0
    """Before this, no fold ends the doubt: notifications from before the restore are still on their way."""
    rows_doubtful_since: float | None = None
    """Since when the live rows may be wrong for the same reason; a reconciliation that begins later ends it."""
    restored_at: float = -math.inf
    """When the database last went back. If it has read no totals since, it may find them lower than it knew."""
    read_at: float = -math.inf
    """When it last read the totals, less the time that the answer may have been on its way."""
    reads: bool = False
    """It is reading the totals."""
    expects: bool = False
    """A drained journal must confirm what it has known before it began to lead."""
    followed_at: float = -math.inf
    """When it last compared the totals as a standby, less the time that the answer may have been on its way."""
    followed: Moment | None = None
    """When it last read the totals as a standby, and what was true then."""
    floor_doubtful: bool = False
    """What it holds may have been forged or lost."""
    overlooked: bool = False
    """The database went back to a state that has all folds this exporter knows of. Nothing but the next periodic
    reconciliation can notice that a snapshot shows rows which are no more."""
    rounds: int = 0
    busy: int = 0
    """Notifications and events in this window, each of which may cost a few rounds."""
    empty: int = 0
    """Folds in this window that found nothing while NOTIFY was on."""
    window: float = 0.0
    newest: int = 0
    """The highest id that this process has settled."""


class World(Watcher):
    """One run of one seed."""

    def __init__(self, seed: int, faults: tuple[str, ...] = FAULTS, *, judges_restores: bool = True) -> None:
        """Begin. Unless it `judges_restores`, numbers are in doubt from a restore in place until all has converged."""
        chance = self._chance = Random(seed)
        self.seed = seed
        self.agenda = Agenda()
        self.database = Database(self.agenda)
        self.game = Game(self.agenda, self.database, Random(seed + 1))
        self.game.committed = self._committed  # type: ignore[method-assign]  # the game has no other listener
        self._faults = faults
        self._judges_restores = judges_restores
        tuning = Tuning(
            fold_chunk=chance.choice((30, 1000)),
            fold_parts=chance.choice((1, 3)),
            pending_maximum=chance.choice((10, 1000)),
            waiting_maximum=chance.choice((10, 1000)),
            announced_maximum=chance.choice((5, 100)),
            high_water_rate=chance.choice((20.0, 60.0, 1000.0)),
            quiet_exit_windows=chance.choice((2, 8)),
            events_per_poll=chance.choice((2, 20)),
        )
        policies = (Policy.ADAPTIVE, Policy.ADAPTIVE, Policy.ALWAYS, Policy.NEVER)
        number = chance.choice((1, 2, 2))
        self.exporters = [
            Exporter(name, self.agenda, self.database, Random(seed + 2), tuning, policy, RECONCILE_INTERVAL, self)
            for name, policy in zip(("one", "two")[:number], chance.choices(policies, k=number), strict=True)
        ]
        self._watches = {exporter.name: Watch() for exporter in self.exporters}
        self._saves: list[State] = []
        self._forged: dict[int, Event] = {}
        """By identity: a forged event may look like a true one."""
        self._announcements: list[Event] = []
        self._committed_at: dict[tuple[int, int], float] = {}
        """By id and transaction of an event."""
        self._queue_was_full = self._restored_in_place = False
        """In the last foul weather."""
        self._phase = 0
        self._fair = False
        self._postponed = False
        self.weather = Weather()
        for exporter in self.exporters:
            exporter.start()
        self._be_quiet()
        self._save()

    def run(self, steps: int) -> None:
        """Take so many steps. Raise `InvariantError` with the trace at the first invariant that does not hold."""
        agenda = self.agenda
        try:
            for _ in range(steps):
                agenda.step()
                if agenda.steps % FULL_CHECK == 0:
                    self._require(self.database.check_totals())
        except Exception as error:
            message = f"seed {self.seed}, step {agenda.steps}: {error}\n{agenda.trace()}"
            raise InvariantError(message) from error

    def _require(self, problem: str | None) -> None:
        if problem is not None:
            raise InvariantError(problem)

    # ------------------------------------------------------------------------------------------------- phases --

    def _set_weather(self, weather: Weather) -> None:
        self._phase += 1
        self.weather = self.game.weather = weather
        self.database.queue_full = weather.queue_full
        for exporter in self.exporters:
            exporter.weather = weather

    def _be_foul(self) -> None:
        weather = foul(self._chance, self._faults)
        self.agenda.note(f"foul weather: {', '.join(weather.faults)}")
        self._queue_was_full, self._restored_in_place = weather.queue_full, False
        self._set_weather(weather)
        self._fair = False
        self.game.resume()
        if weather.faults:
            self._plan_fault()
        self._change_pace(self._phase)
        self.agenda.after(self._chance.uniform(2, 30), self._be_quiet)

    def _be_quiet(self) -> None:
        """Let nothing change any more and all trouble end."""
        self._set_weather(Weather())
        self._fair = False
        self.agenda.note("quiet weather")
        self.game.pause()
        if self._queue_was_full or self._restored_in_place:
            # That is found out by the next fold, which nothing else may ask for before the interval ends.
            self.game.touch()
        for exporter in self.exporters:
            if exporter.session is not None and exporter.session.backend.notified_until > self.agenda.now + 2:
                exporter.disconnect("the stall has ended")
            if exporter.paused:
                exporter.unpause()
            if not (exporter.session is not None and exporter.session.stopping):
                exporter.start()
        self.agenda.after(1, self._start_all, self._phase)
        self.agenda.after(CONVERGES_WITHIN, self._be_fair)

    def _start_all(self, phase: int) -> None:
        """Start what has ended meanwhile."""
        if phase == self._phase:
            for exporter in self.exporters:
                exporter.start()
            self.agenda.after(1, self._start_all, phase)

    def _be_fair(self) -> None:
        if self._leader().ledger.reconciling and not self._postponed:
            # The periodic reconciliation has just begun. Let it end.
            self._postponed = True
            self.agenda.after(PUNCTUAL, self._be_fair)
            return
        self._postponed = False
        self._check_convergence()
        self._forged.clear()
        self._set_weather(fair(self._chance))
        self.game.resume()
        self._fair = True
        for exporter in self.exporters:
            if exporter.session is not None:
                exporter.session.heartbeat_at = self.agenda.now
        self._change_pace(self._phase)
        self.agenda.after(self._chance.uniform(2, 40), self._be_foul)

    def _change_pace(self, phase: int) -> None:
        if phase == self._phase:
            burst = self._chance.random() < self.weather.burst
            self.game.think = 0.005 if burst else self._chance.choice((self.weather.think, PAUSE))
            self.agenda.after(self._chance.uniform(0.2, 4), self._change_pace, phase)

    # ------------------------------------------------------------------------------------------------- faults --

    def _plan_fault(self) -> None:
        self.agenda.after(self._chance.random() * 2 * self.weather.every, self._strike, self._phase)

    def _strike(self, phase: int) -> None:
        if phase != self._phase:
            return
        fault = self._chance.choice(self.weather.faults)
        exporter = self._chance.choice(self.exporters)
        self.agenda.note(f"fault: {fault}, {exporter}")
        match fault:
            case "crash":
                exporter.crash()
                self.agenda.after(self._chance.random() * 2, exporter.start)
            case "disconnect":
                exporter.disconnect("the network breaks")
            case "pause":
                exporter.pause()
                self.agenda.after(self._chance.random() * 9, exporter.unpause)
            case "stall":
                if exporter.session is not None:
                    backend = exporter.session.backend
                    until = self.agenda.now + self._chance.random() * 8
                    backend.notified_until = max(backend.notified_until, until)
            case "stop":
                exporter.stop()
                self.agenda.after(self._chance.random() * 3, exporter.start)
            case "hand over":
                self._hand_over(exporter)
            case "flood":
                self._flood(phase, 40)
            case "forge":
                self._forge()
            case "repeat":
                self._repeat()
            case _:
                self._strike_server(fault)
        self._plan_fault()

    def _hand_over(self, exporter: Exporter) -> None:
        """Give the lease to an exporter that may not hold it, as an administrator can."""
        if self._restored_in_place and exporter.ledger.leading:
            # It has not noticed that it lost the lease. If the other's generations happen to reach its own again after
            # a restore in place, nothing tells it that they are others.
            return
        if self.database.fold is None and exporter.session is not None:
            self.database.state.holder = exporter.name
            self.database.state.holder_pid = exporter.session.backend.pid
            self.database.contested_until = self.agenda.now + LEASE_TIMEOUT

    def _flood(self, phase: int, left: int) -> None:
        """Ask for folds again and again: anyone who knows the channel can."""
        if phase == self._phase and left:
            self.database.notify(0, [FOLD])
            self.agenda.after(0.025, self._flood, phase, left - 1)

    def _strike_server(self, fault: str) -> None:
        database = self.database
        in_place = fault == "restore in place"
        if not database.up or (in_place and database.fold is not None):
            return
        self.game.abort()
        if not in_place:
            for backend in list(database.backends.values()):
                database.disconnect(backend)
            database.up = False
            self.agenda.after(self._chance.random() * 1.5, self._start_server)
        if fault in ("fail over", "lose commits"):
            database.timeline += 1
        if fault in ("restart", "fail over"):
            # The log of a sequence is written ahead, so a crash or a promotion may skip ids.
            database.state.last_id += self._chance.choice((0, 0, 32))
            return
        saves = self._saves[-2:] if fault == "lose commits" else self._saves
        state = self._chance.choice(saves)
        self._restored_in_place = self._restored_in_place or in_place
        del self._saves[self._saves.index(state) + 1 :]
        database.restore(state, in_place=in_place)
        for exporter in self.exporters:
            watch = self._watches[exporter.name]
            self._doubt(watch)
            watch.restored_at = self.agenda.now
            if in_place and not self._judges_restores:
                watch.doubtful_until = math.inf
            elif exporter.session is not None:
                watch.doubtful_until = max(watch.doubtful_until, exporter.session.backend.notified_until)
            watch.overlooked = in_place and state.generation >= exporter.ledger._counters._latest

    def _start_server(self) -> None:
        self.database.up = True

    def _save(self) -> None:
        """Keep the committed state, for a restore."""
        if self.database.up:
            self._saves.append(self.database.state.copy())
            del self._saves[:-SAVES]
        self.agenda.after(self._chance.random() * self._chance.choice((0.2, 2, 10)), self._save)

    def _forge(self) -> None:
        """Announce an event that was not written: anyone who knows the channel can."""
        if not self._announcements:
            return
        known = self._chance.choice(self._announcements)
        number = max(1, self.database.state.last_id + self._chance.randint(-3, 5))
        self._send_forged(Event(number, known.xid, known.at, known.change))

    def _repeat(self) -> None:
        """Send a payload again that has been sent before."""
        if self._announcements:
            known = self._chance.choice(self._announcements)
            self._send_forged(Event(known.id, known.xid, known.at, known.change))

    def _send_forged(self, event: Event) -> None:
        self._forged[id(event)] = event
        self.database.notify(0, [event])

    def _doubt(self, watch: Watch) -> None:
        """Do not judge numbers and rows until two folds and a reconciliation have set them right."""
        watch.doubtful_folds, watch.floor_doubtful = 2, True
        watch.rows_doubtful_since = self.agenda.now
        watch.newest = 0

    # --------------------------------------------------------------------------------- invariants at each step --

    def started(self, exporter: Exporter) -> None:
        """Forget what has been settled."""
        watch, ledger = self._watches[exporter.name], exporter.ledger
        watch.newest = 0
        watch.floor_doubtful = watch.floor_doubtful and (ledger._floor is not None or ledger._counters._seen >= 0)

    def changed(self, exporter: Exporter) -> None:
        """Check I2 and I3, and the live rows."""
        self.proved(exporter)
        watch, ledger = self._watches[exporter.name], exporter.ledger
        self._check_rows(exporter)
        if watch.doubtful_folds or not ledger._presentable:
            return
        exposed = ledger._counters.exposed()
        truth = self.database.state.truth
        for key, n in exposed.items():
            if n > truth.get(key, 0) and not key[0].endswith("profit_credits_sum"):
                raise InvariantError(f"I3: {exporter} is ahead of the truth: {differences(exposed, truth)}")
        for key, n in watch.least.items():
            if exposed.get(key, 0) < n and not key[0].endswith("profit_credits_sum"):
                raise InvariantError(f"I2: {exporter} shows less than before: {differences(exposed, watch.least)}")
        watch.least = exposed

    def proved(self, exporter: Exporter) -> None:  # noqa: ARG002
        """Check that only one exporter shows the game's series."""
        shown = [
            exporter.name
            for exporter in self.exporters
            if exporter.running and exporter.ledger.proves_lead and exporter.ledger._presentable
        ]
        if len(shown) > 1 and self.agenda.now >= self.database.contested_until:
            raise InvariantError(f"{' and '.join(shown)} show the game at once")

    def arrived(self, exporter: Exporter) -> None:
        """Allow a round for what has arrived."""
        self._watches[exporter.name].busy += 1

    def announced(self, exporter: Exporter, event: Event) -> None:
        """Remember that a forged payload was counted."""
        if id(event) in self._forged:
            self._doubt(self._watches[exporter.name])

    def resyncs(self, exporter: Exporter, totals: Totals, journal: frozenset[int]) -> None:
        """Allow numbers to fall if another exporter has folded only a part of what was announced."""
        counters = exporter.ledger._counters
        watch = self._watches[exporter.name]
        watch.reads, watch.expects = True, exporter.ledger._expected is not None
        if counters.has_gap(totals.generation) and counters.pending() & journal:
            watch.least = {}

    def folded(self, exporter: Exporter, fold: Fold, outcome: Outcome) -> None:
        """Check what a fold has found."""
        watch = self._watches[exporter.name]
        watch.busy += len(outcome.news)
        if outcome.rewound and (
            (watch.reads and watch.restored_at >= watch.read_at)
            or (watch.expects and watch.restored_at >= max(watch.followed_at, 0))
            # It may expect a forged event that it heard as a standby after its last reading.
            or (watch.expects and watch.floor_doubtful)
        ):
            self._doubt(watch)
        watch.expects = watch.expects and not outcome.drained
        if watch.reads:
            watch.reads, watch.read_at = False, self.agenda.now - ANSWER
        if watch.doubtful_folds:
            watch.doubtful_folds -= outcome.settled and self.agenda.now > watch.doubtful_until
            watch.least = {}
        elif outcome.unconfirmed:
            raise InvariantError(f"{exporter} found {outcome.unconfirmed} events unconfirmed that were committed")
        elif outcome.rewound:
            raise InvariantError(f"{exporter} found a rewind that never was")
        else:
            shown = [event.id for event in fold.events if says_something(event)]
            watch.newest = max([watch.newest, *shown])
        session = exporter.session
        if session is not None and not fold.events and session.mode.may_sleep:
            watch.empty += 1
            if watch.empty > EMPTY_FOLDS:
                raise InvariantError(f"{exporter} folded nothing {watch.empty} times within a second")

    def observed(self, exporter: Exporter, rewound: bool) -> None:
        """Check that a rewind has happened."""
        watch = self._watches[exporter.name]
        if rewound and watch.restored_at < max(watch.followed_at, 0):
            raise InvariantError(f"{exporter} observed a rewind that never was")

    def followed(self, exporter: Exporter, rewound: bool, moment: Moment) -> None:
        """Check that a rewind has happened, and that all is known that was committed, and nothing else."""
        self.observed(exporter, rewound)
        watch = self._watches[exporter.name]
        watch.followed_at = self.agenda.now - ANSWER
        watch.followed = moment if exporter.ledger._counters.following else None
        if watch.followed is None or not moment.complete or self._lacks_room(exporter):
            return
        # A forged event may have the id of one in the journal.
        if watch.floor_doubtful or watch.restored_at >= moment.at:
            return
        known = exporter.ledger._counters.exposed()
        for key, n in moment.truth.items():
            if known.get(key, 0) < n and not key[0].endswith("_sum"):
                raise InvariantError(f"{exporter} stands by and does not know all: {differences(known, moment.truth)}")
        for key, n in known.items():
            if n > self.database.state.truth.get(key, 0) and not key[0].endswith("_sum"):
                raise InvariantError(f"{exporter} stands by and knows what was never true: {key}")

    def dropped(self, exporter: Exporter, event: Event) -> None:
        """Check that what a standby drops was committed before it read the totals."""
        moment = self._watches[exporter.name].followed
        committed_at = self._committed_at.get((event.id, event.xid), -math.inf)
        counters = exporter.ledger._counters
        if moment is None or counters._visibility is None:
            return
        if event.id in counters.pending() or self._lacks_room(exporter):
            return
        if committed_at > moment.at:
            raise InvariantError(f"{exporter} stands by and has dropped event {event.id}")

    def _lacks_room(self, exporter: Exporter) -> bool:
        return len(exporter.ledger.heard()) >= exporter.tuning.pending_maximum

    def leads(self, exporter: Exporter) -> None:
        """Check that what it holds was true."""
        watch, floor, truth = self._watches[exporter.name], exporter.ledger._floor or {}, self.database.state.truth
        if watch.floor_doubtful:
            return
        for key, n in floor.items():
            if n > truth.get(key, 0) and not key[0].endswith("_sum"):
                raise InvariantError(f"{exporter} holds what was never true: {differences(floor, truth)}")

    def reconciled(self, exporter: Exporter, corrections: int) -> None:
        """Check that a reconciliation has found nothing wrong."""
        watch = self._watches[exporter.name]
        if watch.rows_doubtful_since is not None:
            if exporter.reconciliation_began_at > watch.rows_doubtful_since:
                watch.rows_doubtful_since, watch.overlooked = None, False
        elif corrections:
            raise InvariantError(f"{exporter} corrected {corrections} series although nothing was missed")

    def _check_rows(self, exporter: Exporter) -> None:
        """Compare the live rows, if all that was committed has been applied."""
        session, ledger = exporter.session, exporter.ledger
        if (
            session is None
            or not session.reconciled
            or session.folding
            or session.reading
            or session.waiting
            or session.backend.notified_until > self.agenda.now
            or ledger._counters._latest != self.database.state.generation
            or not self.database.state.journal.keys() <= ledger._counters._pending.keys()
            or self._watches[exporter.name].rows_doubtful_since is not None
            or not ledger._presentable
            or ledger.needs_snapshot
            or ledger.reconciling
        ):
            return
        self._require(self._compare_rows(exporter))

    def _compare_rows(self, exporter: Exporter) -> str | None:
        live = exporter.ledger._live
        found = Rows(live._pipelines, live._tasks, live._factories).live()
        expected: LiveRows = self.database.state.rows.live()
        if found == expected:
            return None
        tables: list[tuple[Mapping[Any, object], Mapping[Any, object]]] = [
            (found.pipelines, expected.pipelines),
            (found.tasks, expected.tasks),
            (found.factories, expected.factories),
        ]
        wrong = [
            f"{key}: {shown.get(key)} for {rows.get(key)}"
            for shown, rows in tables
            for key in dict.fromkeys([*shown, *rows])
            if shown.get(key) != rows.get(key)
        ]
        return f"{exporter} shows other rows than the game has: {'; '.join(wrong)}"

    def looped(self, session: Session, step: Step | None, delay: float) -> None:
        """Check that steps are punctual, and that the loop does not run in circles."""
        now, watch = self.agenda.now, self._watches[session.exporter.name]
        if step is None and delay <= 0:
            raise InvariantError(f"{session} has nothing to do and does not sleep")
        if now - watch.window > 1:
            watch.rounds, watch.busy, watch.empty, watch.window = 0, 0, 0, now
        watch.rounds += 1
        if watch.rounds > 200 + 4 * watch.busy:
            raise InvariantError(
                f"{session} ran {watch.rounds} rounds in {now - watch.window:.3f} s, for {watch.busy} events"
            )
        if step is Step.SNAPSHOT and not session.drained:
            raise InvariantError(f"{session} reads a snapshot although there is a backlog to fold")
        state = self.database.state
        if step is None and session.ledger.leading and session.mode.may_sleep and state.holder == session.exporter.name:
            silent = [writer for writer in self.game.writers if writer.transaction and writer.transaction.silent]
            if silent and not state.notify_disabled:
                raise InvariantError(f"{session} does not poll although {silent[0]} has not notified")
        if not self._fair:
            return
        if now - session.heartbeat_at > session.exporter.tuning.heartbeat_interval + PUNCTUAL:
            raise InvariantError(f"{session}: the last heartbeat began {now - session.heartbeat_at:.3f} s ago")
        if session.ledger.leading and now - session.schedule.fold_due > PUNCTUAL:
            raise InvariantError(f"{session}: a fold has been due for {now - session.schedule.fold_due:.3f} s")
        if session.ledger.leading and session.schedule.fold_due - now > RECONCILE_INTERVAL + PUNCTUAL:
            raise InvariantError(f"{session}: no fold is due before {session.schedule.fold_due:.3f}")

    def _committed(self, transaction: Transaction) -> None:
        events = transaction.written
        self._committed_at.update(dict.fromkeys(((event.id, event.xid) for event in events), self.agenda.now))
        for watch in self._watches.values():
            watch.busy += len(events)
        self._announcements = (self._announcements + events)[-20:]
        if self._fair:
            self.agenda.after(SHOWN_WITHIN, self._check_shown, self._phase, events)

    def _check_shown(self, phase: int, events: list[Event]) -> None:
        """Check that the events of a transaction are shown by now."""
        if phase != self._phase:
            return
        leader = self._leader()
        pending = leader.ledger._counters._pending
        for event in events:
            if event.id in self.database.state.journal and event.id not in pending:
                raise InvariantError(f"event {event.id} is not shown {SHOWN_WITHIN} s after its commit")

    # ------------------------------------------------------------------------------------------ convergence --

    def _leader(self) -> Exporter:
        leaders = [exporter for exporter in self.exporters if exporter.ledger.leading and exporter.session is not None]
        if len(leaders) != 1 or leaders[0].name != self.database.state.holder:
            raise InvariantError(
                f"{', '.join(map(str, leaders)) or 'nobody'} leads, {self.database.state.holder} has the lease"
            )
        return leaders[0]

    def _check_convergence(self) -> None:
        """Check that after a while without trouble everything is as it should be."""
        state, leader = self.database.state, self._leader()
        counters = leader.ledger._counters
        self._require(self.database.check_totals())
        if state.journal:
            raise InvariantError(f"I5: the journal still holds {sorted(state.journal)}")
        exposed = counters.exposed()
        if exposed != state.truth:
            raise InvariantError(f"I5: {leader} does not show the truth: {differences(exposed, state.truth)}")
        if counters.pending() or counters._settled_before_announced or not counters.synced:
            raise InvariantError(f"I5: {leader} is not in step")
        # A snapshot that took long, because the process was paused, is followed by a long pause.
        pausing = leader.session is not None and leader.session.schedule._snapshot_not_before > self.agenda.now
        if (
            not leader.ledger._presentable
            or (leader.ledger.needs_snapshot and not pausing)
            or leader.ledger.reconciling
        ):
            raise InvariantError(f"{leader} has not reconciled")
        if not (self._watches[leader.name].overlooked or leader.ledger.needs_snapshot):
            self._require(self._compare_rows(leader))
        activity, expected = leader.ledger._activity.copy(), RecentActivity(dict(state.recent), dict(state.latest))
        activity.prune(self.database.clock())
        expected.prune(self.database.clock())
        if activity != expected:
            raise InvariantError(f"{leader} remembers other activity than the database: {activity} for {expected}")
        if leader.ledger._changes._unconfirmed:
            raise InvariantError(f"{leader} still shows changes that nothing confirms")
        newest = self._watches[leader.name].newest
        if newest and (not (changes := leader.ledger.last_changes()) or changes[0].id < newest):
            raise InvariantError(f"{leader} does not have event {newest} among the last changes")
        if state.notify_disabled is not (leader.policy is Policy.NEVER):
            raise InvariantError(f"the triggers are in the wrong mode for {leader}")
        if any(exporter.ledger._presentable for exporter in self.exporters if exporter is not leader):
            raise InvariantError("a standby shows numbers")
        for watch in self._watches.values():
            watch.doubtful_folds, watch.doubtful_until = 0, 0.0
            if not watch.overlooked:
                watch.rows_doubtful_since = None
            watch.least = {}
