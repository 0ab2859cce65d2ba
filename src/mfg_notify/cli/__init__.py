"""The command `mfg-notify`: reads options, builds the parts and runs them, one file per group of commands.

The only room that reads the environment, prints, and ends the process.
"""

from mfg_notify.cli.main import main

__all__ = ["main"]
