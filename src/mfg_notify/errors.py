"""Every error that this package raises on purpose.

    MfgNotifyError
    ├── UsageError                  what the user gave cannot work: options, files, a port that is taken
    ├── MalformedEvent              a journal row or payload that is not an event
    └── DatabaseError
        ├── DatabaseUnavailable     no connection, or it broke: try again
        ├── AccessDenied            wrong password or a missing right: try again, someone may mend it
        ├── ListenerSilent          own ping did not come back: stalled network, or a pooler in the way
        ├── SchemaNotReady          tables or columns of the game are missing, or the migration is
        └── SchemaTooNew            the database was migrated by a newer mfg-notify

Messages are for people: they say what is wrong and what to do, and never carry a password.
"""


class MfgNotifyError(Exception):
    """Base of all of them."""


class UsageError(MfgNotifyError):
    """What the user gave cannot work."""


class MalformedEvent(MfgNotifyError):  # noqa: N818 - it names what was met, not what failed
    """A journal row or payload that is not an event of this version."""


class DatabaseError(MfgNotifyError):
    """Something about the database; `reason` is a short word for metrics and logs."""

    reason = "database"


class DatabaseUnavailable(DatabaseError):  # noqa: N818
    """There is no connection, or it broke."""

    reason = "unavailable"


class AccessDenied(DatabaseError):  # noqa: N818
    """The server refused the password or a right."""

    reason = "access_denied"


class ListenerSilent(DatabaseError):  # noqa: N818
    """The exporter's own ping through NOTIFY did not come back."""

    reason = "listener_silent"


class SchemaNotReady(DatabaseError):  # noqa: N818
    """Tables or columns that are needed are not there."""

    reason = "schema_not_ready"


class SchemaTooNew(DatabaseError):  # noqa: N818
    """The schema was made by a newer version of mfg-notify."""

    reason = "schema_too_new"
