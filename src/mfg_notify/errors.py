"""Every error that this package raises on purpose.

    MfgNotifyError
    ├── UsageError                  the input cannot work: a file, a port that is in use
    │   └── OptionError             the value of an option cannot work, whatever the machine: exit code 2
    ├── MalformedEvent              a journal row or a payload is not an event of this version
    └── DatabaseError
        ├── DatabaseUnavailable     no connection, or it broke: retry
        │   └── NoAnswer            not in time: retry, with another server first
        ├── AccessDenied            a wrong password or a missing right: retry, because someone may fix it
        ├── ListenerSilent          the own ping did not come back: a stalled network or a pooler
        ├── SchemaNotReady          tables or columns of the game are missing, or the migration was not applied
        └── SchemaTooNew            a newer mfg-notify has migrated the database

Messages are for people: they say what is wrong and what to do, and never contain a password.
"""


class MfgNotifyError(Exception):
    """Base class of all errors of this package."""


class UsageError(MfgNotifyError):
    """The input of the user cannot work."""


class OptionError(UsageError):
    """The value of an option, or of its environment variable, cannot work."""


class MalformedEvent(MfgNotifyError):  # noqa: N818 - named after the thing that was found
    """A journal row or payload that is not an event of this version."""


class DatabaseError(MfgNotifyError):
    """Something is wrong with the database; `reason` is a label value for metrics and logs."""

    reason = "database"


class DatabaseUnavailable(DatabaseError):  # noqa: N818
    """There is no connection, or it broke."""

    reason = "unavailable"


class NoAnswer(DatabaseUnavailable):
    """The server did not answer in time."""


class AccessDenied(DatabaseError):  # noqa: N818
    """The server refused the password, or the role lacks a right."""

    reason = "access_denied"


class ListenerSilent(DatabaseError):  # noqa: N818
    """A ping to the own session through NOTIFY did not come back."""

    reason = "listener_silent"


class SchemaNotReady(DatabaseError):  # noqa: N818
    """Tables or columns that are needed do not exist."""

    reason = "schema_not_ready"


class SchemaTooNew(DatabaseError):  # noqa: N818
    """A newer version of mfg-notify has migrated the schema."""

    reason = "schema_too_new"
