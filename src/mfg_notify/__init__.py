"""mfg-notify: exact Prometheus metrics of a SpaceTraders bot's manufacturing, from PostgreSQL LISTEN/NOTIFY."""

from importlib.metadata import version

__version__ = version("mfg-notify")
