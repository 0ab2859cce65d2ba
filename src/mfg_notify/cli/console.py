"""What commands print for people on standard output."""

from functools import partial

from rich.console import Console
from rich.markup import escape

print_line = partial(Console(highlight=False, soft_wrap=True).print)
"""Print a line with rich's markup: colours on a terminal, plain text in a pipe."""


def print_notice(message: str) -> None:
    """Print a notice of the server."""
    print_line(f"[yellow]note[/]: {escape(message)}")


def print_waiting(reason: str) -> None:
    """Print why a command waits."""
    print_line(f"[yellow]waiting[/]: {escape(reason)}")
