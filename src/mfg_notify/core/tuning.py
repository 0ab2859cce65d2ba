"""Every limit and interval that shapes the exporter's behaviour, in one immutable place.

The defaults are what `mfg-notify run` uses. Tests and benchmarks pass other values; nothing changes them at run time.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Tuning:
    """Limits and intervals. Durations are in seconds, rates in events per second."""

    # ------------------------------------------------------------------------------------------------ folding --
    deferred_fold_delay: float = 0.02
    """From a notification that could not be counted by itself to the fold that it asks for."""
    confirming_fold_delay: float = 2.0
    """From a payload that was counted to the fold that settles it."""
    announced_maximum: int = 250
    """Payloads counted since the last fold after which the next fold is due at once: the more are pending, the longer
    that fold holds up what comes next."""
    empty_fold_pause: float = 0.25
    """After a fold that found nothing: anyone who knows the channel name could otherwise request folds without end."""
    fold_chunk: int = 20_000
    """Events that one fold takes out of the journal."""
    fold_parts: int = 4
    """Statements that take them: the server works on the next part while the exporter settles the previous one."""
    fold_chunk_minimum: int = 500
    """Events that a fold takes at least, however many folds in a row have timed out."""
    fold_share: float = 0.08
    """Share of time that folds may take, beyond what the events explain; see `fold_pace`."""
    fold_slow: float = 0.02
    """Once folds take longer than this on average, the share is one of all their time: folding stays below a tenth."""
    fold_seconds_per_event: float = 0.00005
    """What an event adds to the duration of a fold, at least; about 15 microseconds are usual."""
    full_scan_share: float = 0.01
    """Share of time that folds may take which scan the whole journal."""
    fold_pause_maximum: float = 60.0
    """Between two folds, however slow they have become."""
    fold_timeout_maximum: float = 25.0
    """For the answer to a fold, when folds have become slow; below the `statement_timeout` of the session."""
    pending_maximum: int = 20_000
    """Announced events that may wait for a fold; a bound on memory under a flood of payloads."""
    waiting_maximum: int = 20_000
    """Notifications that may wait to be taken from the listener; a bound on memory under a flood."""

    # -------------------------------------------------------------------------------------------- reconciling --
    snapshot_pause: float = 1.0
    """After a snapshot that events have asked for, at least."""
    snapshot_timeout: float = 25.0
    """For the first snapshot of a session, and for reading all totals."""
    books_journal_maximum: int = 20_000
    """Events in the journal above which the books are not checked: that would take longer than folding them."""
    books_timeout: float = 5.0
    """For a statement of a check of the books."""
    factory_count_share: float = 0.01
    """Share of time that counting all rows of factories may take."""
    follow_share: float = 0.02
    """Share of time in which a standby may read all totals."""
    unheard_ids: int = 1_000
    """Of so many ids that were handed out last, a standby reads the events that it has not heard."""
    old_snapshot_age: float = 60.0
    """Age from which a snapshot that somebody holds is exported: those of ordinary transactions come and go."""
    old_snapshot_warning: float = 600.0
    """Age from which the log names who holds it."""
    market_timeout: float = 20.0
    """For one reading of the markets."""

    # -------------------------------------------------------------------------------------- leading, sessions --
    lease_duration: float = 5.0
    """After a heartbeat: no other exporter may take the lease over, so its holder may show the game's series. All
    exporters of a database must agree on it."""
    heartbeat_interval: float = 1.0
    """Between two renewals of the lease, each of which also sends a ping through NOTIFY."""
    answer_timeout: float = 5.0
    """For an answer to a ping or to a short statement; after that the connection counts as broken."""
    open_timeout: float = 15.0
    """For each connection to a server, `connect_timeout` permitting, and for checking the installation."""
    final_fold_timeout: float = 3.0
    """For the last fold and the release of the lease when the exporter stops."""
    retry_maximum: float = 2.0
    """Between two attempts to connect, at most."""

    # -------------------------------------------------------------------------------------------- notify mode --
    high_water_rate: float = 2500.0
    """Event rate above which the triggers stop notifying and the exporter polls."""
    low_water_ratio: float = 0.6
    """Share of the high-water rate below which notifying may resume."""
    busy_ratio: float = 0.8
    """Share of time that notifying commits may take before polling begins, whatever the rate: they are serialized."""
    rate_window: float = 0.25
    """Over which events are counted, at least, before a rate is computed."""
    quiet_exit_windows: int = 8
    """Consecutive windows below the low-water mark before NOTIFY is enabled again: each switch costs a few folds."""
    commit_samples: int = 8
    """Recent commits that are measured; the fastest counts, because anything else only shows what held one up."""
    events_per_poll: int = 20
    """While polling, a fold waits until about this many events have come."""
    poll_interval_minimum: float = 0.015
    """Between two folds while polling, at least."""
    poll_interval_maximum: float = 1.0
    """And at most."""
    poll_interval_under_load: float = 0.25
    """At most while the rate is high: a pause is then a stall of the server, and a burst follows it."""
