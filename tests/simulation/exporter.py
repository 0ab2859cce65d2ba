"""An exporter: the real objects of `mfg_notify.core`, driven in the order in which `mfg_notify.exporter.session` does.

`Session` mirrors `exporter.session`, `intake`, `folding`, `reconciling` and `leadership`: a generator that yields
wherever those await an answer of the database. Decisions are left to the core. A process outlives its sessions, and its
ledger with it; a crash ends both.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence
from enum import Enum, auto
from random import Random
from typing import Any

from tests.simulation.agenda import Agenda
from tests.simulation.database import EPOCH, FOLD, Backend, Database, Moment
from tests.simulation.weather import Weather

from mfg_notify.core.catalogue import MICROSECONDS_PER_SECOND
from mfg_notify.core.counters import Arrival, settle
from mfg_notify.core.events import Event
from mfg_notify.core.ledger import Fold, Ledger, Outcome, Totals
from mfg_notify.core.notify_mode import NotifyMode, Policy
from mfg_notify.core.scan_horizon import ScanHorizon
from mfg_notify.core.schedule import Schedule, Situation, Step
from mfg_notify.core.tuning import Tuning

LOCKED = object()
"""Answer of a statement that waits for the row of the lease."""
RETRY = 0.05

Work = Generator[tuple[Callable[..., Any], tuple[Any, ...]] | float, Any, None]
Steps = Generator[tuple[Callable[..., Any], tuple[Any, ...]] | float, Any, Any]


class Sleeping(Enum):
    """What a session waits for."""

    ANSWER = auto()
    WAKE = auto()
    NOTHING = auto()


class Watcher:
    """What the invariants want to know of an exporter. The world overrides this."""

    def started(self, exporter: "Exporter") -> None:
        """React to a new process, or to one that stands by or reconnects: no last change must be known to it."""

    def changed(self, exporter: "Exporter") -> None:
        """React to a change of what is exposed."""

    def proved(self, exporter: "Exporter") -> None:
        """React to a heartbeat that proves that the exporter leads."""

    def arrived(self, exporter: "Exporter") -> None:
        """React to an arrival of notifications."""

    def announced(self, exporter: "Exporter", event: Event) -> None:
        """React to a counted payload."""

    def looped(self, session: "Session", step: Step | None, delay: float) -> None:
        """React to one round of a session's loop."""

    def observed(self, exporter: "Exporter", rewound: bool) -> None:
        """React to a generation that was read without folding."""

    def followed(self, exporter: "Exporter", rewound: bool, moment: Moment) -> None:
        """React to totals that a standby read at that moment."""

    def dropped(self, exporter: "Exporter", event: Event) -> None:
        """React to a payload that a standby did not add to what it knows."""

    def leads(self, exporter: "Exporter") -> None:
        """React to an exporter that begins to lead."""

    def folded(self, exporter: "Exporter", fold: Fold, outcome: Outcome) -> None:
        """React to a settled fold."""

    def resyncs(self, exporter: "Exporter", totals: Totals, journal: frozenset[int]) -> None:
        """React to totals that were read while the journal held these ids."""

    def reconciled(self, exporter: "Exporter", corrections: int) -> None:
        """React to a finished reconciliation."""


class Session:
    """One session of an exporter, on one backend."""

    def __init__(self, exporter: "Exporter", backend: Backend) -> None:
        agenda, tuning = exporter.agenda, exporter.tuning
        self.exporter = exporter
        self.backend = backend
        self.ledger = exporter.ledger
        self.mode = NotifyMode(exporter.policy, agenda.now, tuning)
        self.schedule = Schedule(exporter.reconcile_interval, agenda.now, tuning)
        self.horizon = ScanHorizon()
        self.standby = False
        self.drained = False
        """The journal was drained since this session began to lead."""
        self.folding = False
        """A fold is under way, or its reply."""
        self.reading = False
        """Live rows are being read."""
        self.reconciled = False
        """Live rows have been read since this session began to lead."""
        self.stopping = False
        self.ended = False
        self.waiting: deque[tuple[bool, Event | str]] = deque()
        """Notifications that have arrived, each with whether it is our own."""
        self.skipped = 0
        self.counting_on_arrival = False
        self.sleeping = Sleeping.NOTHING
        self.sleep_number = 0
        self.asked_at = 0.0
        self.ping_number = 0
        self.ping_sent_at: float | None = None
        self.heartbeat_at = agenda.now
        """When the last heartbeat began."""
        self._work = self._loop()

    def __str__(self) -> str:
        return str(self.backend)

    # --------------------------------------------------------------------------------------------- the machine --

    def resume(self, answer: object) -> None:
        """Go on with an answer of the database."""
        try:
            request = self._work.send(answer)
        except StopIteration:
            self.exporter.stopped()
            return
        if isinstance(request, float):
            self.sleeping = Sleeping.WAKE
            self.sleep_number += 1
            self.exporter.agenda.after(request, self.exporter.receive, self, self.wake, self.sleep_number)
        else:
            self.sleeping = Sleeping.ANSWER
            self.asked_at = self.exporter.agenda.now
            self.exporter.ask(self, *request)

    def wake(self, number: int | None = None) -> None:
        """Wake up the loop if it sleeps; a number only ends the sleep that it belongs to."""
        if self.sleeping is Sleeping.WAKE and number in (None, self.sleep_number):
            self.sleeping = Sleeping.NOTHING
            self.resume(None)

    def close(self) -> None:
        """End the session."""
        self.ended = True
        self._work.close()

    # ------------------------------------------------------------------------------------- session.py: the loop --

    def _situation(self) -> Situation:
        ledger = self.ledger
        return Situation(ledger.leading, ledger.drained, ledger.reconciling, ledger.needs_snapshot, ledger.presentable)

    def _loop(self) -> Work:
        agenda, schedule, watcher = self.exporter.agenda, self.schedule, self.exporter.watcher
        while not self.stopping:
            self.drain()
            self._finish_reconciliation()
            step = schedule.next_step(agenda.now, self._situation())
            delay = schedule.delay(agenda.now, self._situation())
            watcher.looped(self, step, delay)
            if step is Step.HEARTBEAT:
                yield from self._heartbeat()
            elif step is Step.SNAPSHOT:
                duration = yield from self._take_snapshot()
                schedule.snapshot_ends(agenda.now, duration)
            elif step is Step.FOLD:
                yield from self._fold()
            elif step is Step.FOLLOW:
                yield from self._follow()
            else:
                self.counting_on_arrival = True
                yield delay
                self.counting_on_arrival = False
        if self.ledger.leading:
            self.mode.prepare_stop()
            while not (yield from self._fold()):
                pass
            self.ledger.release_lead()
            yield self.exporter.database.release, (self.backend,)

    def _heartbeat(self) -> Steps:
        agenda, database, ledger = self.exporter.agenda, self.exporter.database, self.ledger
        self.heartbeat_at = agenda.now
        self.schedule.heartbeat_begins(agenda.now)
        starting = not self.exporter.has_stood_by
        acquired = False
        if not ledger.leading:
            acquired, generation = yield database.acquire, (self.backend, starting)
            self.exporter.watcher.observed(self.exporter, ledger.observe(generation))
        if acquired:
            ledger.lead()
            self.exporter.watcher.leads(self.exporter)
            self.standby = self.reconciled = self.drained = False
            self.schedule.lead(agenda.now)
            self.horizon.reset()
            self.mode.invalidate()
        # What follows is in leadership.py.
        if self.ping_sent_at is None:
            self.ping_sent_at = agenda.now
            self.ping_number += 1
        sent = agenda.now
        holds, clock, notify_disabled = yield database.heartbeat, (self.backend, self.ping_number)
        self.mode.measure_commit(self.exporter.weather.commit)
        ledger.set_clock(clock, (sent + agenda.now) / 2)
        if notify_disabled != self.mode.polling:
            self.mode.invalidate()
        if not holds if ledger.leading else not self.standby:
            self._step_down()
        elif ledger.leading:
            ledger.prove_lead(sent)
            self.exporter.watcher.proved(self.exporter)

    def _step_down(self) -> None:
        self.ledger.step_down()
        self.exporter.watcher.started(self.exporter)
        self.standby = self.exporter.has_stood_by = True
        self.exporter.agenda.note(f"{self} stands by")

    # ---------------------------------------------------------------------------------------------- folding.py --

    def _fold(self) -> Steps:
        agenda, database, ledger, mode = self.exporter.agenda, self.exporter.database, self.ledger, self.mode
        tuning = self.exporter.tuning
        started = agenda.now
        self.schedule.fold_begins()
        self.folding = True
        self.counting_on_arrival = True
        number = ledger.begin_fold()
        disable_notify = mode.needs_update and mode.wants_polling
        if mode.needs_update and not disable_notify:
            yield database.enable_notify, ()
            mode.record_applied(polling=False)
        after = -1 if ledger.reconciling else self.horizon.folded_up_to
        fold: Fold | None = None
        part = -(-tuning.fold_chunk // tuning.fold_parts)
        if (yield self.exporter.begin_fold, (self.backend, disable_notify)):
            events = yield database.take_events, (part, after)
            if len(events) == part:
                for taken in range(part, tuning.fold_chunk, part):
                    events += yield database.take_events, (min(part, tuning.fold_chunk - taken), after)
            fold = yield database.commit_fold, (number, settle(events), tuning.fold_chunk)
        if fold is not None:
            ledger.prove_lead(started)
            if disable_notify:
                mode.record_applied(polling=True)
            mode.folded(fold.xid, fold.xmin)
            self.horizon.folded(fold.xid, fold.xmin, drained=fold.drained, last_id=fold.last_id)
        self.counting_on_arrival = False
        if fold is None:
            self._step_down()
            self.folding = False
            return True
        outcome = yield from self._settle(fold)
        duration = agenda.now - started
        delay = self.exporter.reconcile_interval if mode.may_sleep else mode.poll_delay(duration)
        self.schedule.fold_ends(agenda.now, settled=outcome.settled, empty=not fold.events, poll_delay=delay)
        return outcome.settled

    def _follow(self) -> Steps:
        started = self.exporter.agenda.now
        self.counting_on_arrival = True
        known = self.ledger.heard(), self.exporter.tuning.unheard_ids
        totals, waiting, moment = yield self.exporter.database.follow, known
        self.counting_on_arrival = False
        self.exporter.watcher.followed(self.exporter, self.ledger.follow(totals, waiting), moment)
        self.schedule.followed(self.exporter.agenda.now, self.exporter.agenda.now - started)

    def _settle(self, fold: Fold) -> Steps:
        outcome = self.ledger.settle(fold)
        rewound = outcome.rewound
        if outcome.needs_totals:
            totals, journal = yield self.exporter.database.read_totals, ()
            self.exporter.watcher.resyncs(self.exporter, totals, journal)
            outcome = self.ledger.resync(totals)
        if rewound or outcome.rewound:
            self.exporter.agenda.note(f"{self} finds a rewind to generation {fold.generation}")
            self.horizon.reset()
        self.folding = False
        self._record(outcome.news)
        self.drained = self.drained or outcome.drained
        self.exporter.watcher.folded(self.exporter, fold, outcome)
        self.exporter.watcher.changed(self.exporter)
        return outcome

    def _record(self, events: Sequence[Event]) -> None:
        span = max((self.ledger.now() - event.at for event in events), default=0) / MICROSECONDS_PER_SECOND
        self.mode.count(len(events), self.exporter.agenda.now, span)

    # ------------------------------------------------------------------------------------------ reconciling.py --

    def _take_snapshot(self) -> Steps:
        agenda, database = self.exporter.agenda, self.exporter.database
        started = agenda.now
        self.exporter.reconciliation_began_at = started
        self.reading = True
        self.ledger.begin_reconciliation()
        yield database.clock, ()
        snapshot = yield database.read_snapshot, ()
        self.ledger.reconcile(snapshot)
        self.reading = False
        yield database.clock, ()
        return agenda.now - started

    def _finish_reconciliation(self) -> None:
        corrections = self.ledger.finish_reconciliation()
        if corrections is not None:
            self.reconciled = True
            self.exporter.watcher.reconciled(self.exporter, corrections.total())
            self.exporter.watcher.changed(self.exporter)

    # ----------------------------------------------------------------------------------------------- intake.py --

    def arrive(self, own: bool, said: list[Event | str]) -> None:
        """Queue notifications that have just arrived, and react to them."""
        self.exporter.watcher.arrived(self.exporter)
        for one in said:
            if len(self.waiting) >= self.exporter.tuning.waiting_maximum and not own:
                self.skipped += 1
            else:
                self.waiting.append((own, one))
        if self.counting_on_arrival:
            due = self.schedule.fold_due
            self.drain()
            waits = self.ledger.awaits_barrier or self.ledger.needs_snapshot
            if self.schedule.fold_due >= due and not waits:
                return
        self.wake()

    def drain(self) -> None:
        """Take every queued notification, count it, and say when a fold is due for it."""
        ledger, schedule, tuning = self.ledger, self.schedule, self.exporter.tuning
        now = self.exporter.agenda.now
        counted: list[Event] = []
        while self.waiting:
            own, said = self.waiting.popleft()
            if isinstance(said, Event):
                if ledger.leading:
                    self._announce(said, counted)
                elif ledger.hear(said):
                    self.exporter.watcher.announced(self.exporter, said)
                else:
                    self.exporter.watcher.dropped(self.exporter, said)
            elif own and said.startswith("barrier "):
                ledger.receive_barrier(int(said[8:]))
            elif own and said.startswith("ping "):
                if int(said[5:]) == self.ping_number:
                    self.ping_sent_at = None
            elif ledger.leading and said == FOLD:
                schedule.request_fold(now, tuning.deferred_fold_delay)
        if counted:
            self._record(counted)
            schedule.announced(len(counted), now)
        if self.skipped:
            self.skipped = 0
            schedule.request_fold(now, tuning.deferred_fold_delay)
        self.mode.count_silence(now)
        if self.mode.needs_update:
            schedule.fold_at_once(now)
        if counted:
            self.exporter.watcher.changed(self.exporter)

    def _announce(self, event: Event, counted: list[Event]) -> None:
        tuning, now = self.exporter.tuning, self.exporter.agenda.now
        arrival = self.ledger.announce(event)
        if arrival is Arrival.COUNTED:
            counted.append(event)
            self.exporter.watcher.announced(self.exporter, event)
        elif arrival is Arrival.DUPLICATE:
            self.schedule.request_fold(now, tuning.confirming_fold_delay)
        else:
            self.schedule.request_fold(now, tuning.deferred_fold_delay)


class Exporter:
    """A process, and the network between it and the database."""

    def __init__(
        self,
        name: str,
        agenda: Agenda,
        database: Database,
        chance: Random,
        tuning: Tuning,
        policy: Policy,
        reconcile_interval: float,
        watcher: Watcher,
    ) -> None:
        self.name = name
        self.agenda = agenda
        self.database = database
        self.tuning = tuning
        self.policy = policy
        self.reconcile_interval = reconcile_interval
        self.watcher = watcher
        self.weather = Weather()
        self._chance = chance
        self.session: Session | None = None
        self.running = False
        """The process exists."""
        self.has_stood_by = False
        """Since it was started."""
        self.paused = False
        """The process is stopped by a signal; what arrives waits."""
        self._inbox: list[tuple[Session, Callable[..., object], tuple[Any, ...]]] = []
        self.reconciliation_began_at = 0.0
        self._life = 0
        """Rises with every start and every new attempt to connect."""
        self.ledger = self._make_ledger()

    def __str__(self) -> str:
        return self.name

    def _make_ledger(self) -> Ledger:
        agenda = self.agenda
        return Ledger(lambda: agenda.now, EPOCH, self.tuning)

    # ------------------------------------------------------------------------------------------- the process --

    def start(self) -> None:
        """Start the process."""
        if not self.running:
            self.running, self.has_stood_by = True, False
            self.ledger = self._make_ledger()
            self.watcher.started(self)
            self._connect_after(0.0)

    def crash(self) -> None:
        """Kill the process."""
        self._end_session()
        self.running = self.paused = False
        self._life += 1

    def stop(self) -> None:
        """Ask the process to stop in order."""
        if self.session is None:
            self.crash()
        else:
            self.session.stopping = True
            self.session.wake()

    def stopped(self) -> None:
        """Record that the session has ended in order, and the process with it."""
        self.crash()

    def pause(self) -> None:
        """Stop the process for a while, with SIGSTOP."""
        self.paused = True

    def unpause(self) -> None:
        """Let it go on: everything that has arrived meanwhile arrives now."""
        self.paused = False
        inbox, self._inbox = self._inbox, []
        for session, action, arguments in inbox:
            self.receive(session, action, *arguments)

    # -------------------------------------------------------------------------------------------- the network --

    def _latency(self) -> float:
        return self._chance.random() * 2 * self.weather.latency

    def receive(self, session: Session, action: Callable[..., object], *arguments: object) -> None:
        """Let something arrive at the process, now or when it is no longer paused."""
        if session.ended:
            return
        if self.paused:
            self._inbox.append((session, action, arguments))
            return
        action(*arguments)

    def ask(self, session: Session, statement: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Send a statement; its answer resumes the session."""
        self.agenda.after(self._latency(), self._execute, session, statement, arguments)

    def _execute(self, session: Session, statement: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        if not session.backend.alive:
            self.agenda.after(self._latency(), self.receive, session, self.disconnect, "the server has hung up")
            return
        # Even if the client has gone, a statement that has arrived is executed.
        answer = statement(*arguments)
        if answer is LOCKED:
            self.agenda.after(RETRY, self._execute, session, statement, arguments)
            return
        self.agenda.after(self._latency(), self.receive, session, session.resume, answer)

    def begin_fold(self, backend: Backend, disable_notify: bool) -> object:
        """Begin a fold, or wait while another transaction holds the row of the lease."""
        return LOCKED if self.database.fold is not None else self.database.begin_fold(backend, disable_notify)

    def send(self, backend: Backend, sender: int, said: list[Event | str]) -> None:
        """Carry notifications of one commit to the client, in order."""
        at = max(backend.notified_until, self.agenda.now + self._latency())
        backend.notified_until = at
        self.agenda.at(at, self._arrive, backend, sender == backend.pid, said)

    def _arrive(self, backend: Backend, own: bool, said: list[Event | str]) -> None:
        session = self.session
        if session is not None and session.backend is backend:
            self.receive(session, session.arrive, own, said)

    # ---------------------------------------------------------------------------------- connecting, disconnecting --

    def _connect_after(self, delay: float) -> None:
        self._life += 1
        self.agenda.after(delay, self._connect, self._life)

    def _connect(self, life: int) -> None:
        if life != self._life or not self.running:
            return
        if not self.database.up or self.paused:
            self._connect_after(0.2)
            return
        # What is notified before the client has the answer to LISTEN is thrown away.
        backend = self.database.connect(self.name, self)
        self.agenda.after(self._latency(), self._open, life, backend)

    def _open(self, life: int, backend: Backend) -> None:
        if life != self._life or not backend.alive:
            self.database.disconnect(backend)
            if life == self._life:
                self._connect_after(0.2)
            return
        self.ledger.attach("installed", self.database.timeline)
        session = self.session = Session(self, backend)
        self.agenda.after(self.tuning.heartbeat_interval / 2, self._watch, session)
        session.resume(None)

    def _watch(self, session: Session) -> None:
        """Find out that an answer takes too long; a paused process does that later."""
        if session.ended:
            return
        self.agenda.after(self.tuning.heartbeat_interval / 2, self._watch, session)
        timeout = self.tuning.answer_timeout
        if self.paused:
            return
        if session.ping_sent_at is not None and self.agenda.now - session.ping_sent_at > timeout:
            self.disconnect("a ping did not come back")
        elif session.sleeping is Sleeping.ANSWER and self.agenda.now - session.asked_at > timeout:
            self.disconnect("the database does not answer")

    def disconnect(self, reason: str) -> None:
        """Lose the session, and connect again after a pause."""
        if self.session is not None:
            self.agenda.note(f"{self.session} is disconnected: {reason}")
            self.session.drain()
            self._end_session()
            self.ledger.disconnect()
            # A fold whose reply is lost takes its events along, and those never become last changes.
            self.watcher.started(self)
            self.watcher.changed(self)
            self._connect_after(self._chance.random() * self.tuning.retry_maximum)

    def _end_session(self) -> None:
        session = self.session
        if session is None:
            return
        self.session = None
        self._inbox.clear()
        stopping = session.stopping
        session.close()
        lingers = 0.0
        if self._chance.random() < self.weather.lingers and not stopping:
            lingers = self._chance.random() * 4
        # What is on its way when a connection is lost may still reach the server.
        self.agenda.after(lingers, self.database.disconnect, session.backend)
        if stopping:
            self.running = False
