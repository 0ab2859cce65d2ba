"""The command itself: its groups, how it reports errors, and the completion of shells."""

import sys
from typing import Any

import click
from click.shell_completion import get_completion_class

from mfg_notify import __version__
from mfg_notify.cli.dashboards import dashboards
from mfg_notify.cli.demo import demo, simulate
from mfg_notify.cli.history import backfill
from mfg_notify.cli.inspect import doctor, tail, verify_command
from mfg_notify.cli.migrate import migrate
from mfg_notify.cli.rules import rules
from mfg_notify.cli.run import run
from mfg_notify.errors import MfgNotifyError, OptionError, UsageError


class _OptionFailure(click.ClickException):
    exit_code = 2


class _Group(click.Group):
    """Reports an error of ours as one line on standard error, with exit code 1, or 2 if an option is to blame."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401
        try:
            return super().invoke(ctx)
        except MfgNotifyError as error:
            failure = _OptionFailure if isinstance(error, OptionError) else click.ClickException
            raise failure(str(error)) from error
        except click.UsageError as error:
            # click repeats the argument that it does not understand, which may be a DSN with a password.
            if any(text in error.message for text in sys.argv[1:] if "://" in text or "password" in text):
                raise click.UsageError("an argument looks like a DSN: name it with --dsn", error.ctx) from None
            raise


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="mfg-notify")
def main() -> None:
    """Exact Prometheus metrics of a SpaceTraders bot's manufacturing, from PostgreSQL LISTEN/NOTIFY.

    On an empty machine: mfg-notify demo. On a game database: mfg-notify migrate up, then mfg-notify run.
    """


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that completes commands, options and their values in your shell.

    For bash put eval "$(mfg-notify completion bash)" into ~/.bashrc, for zsh the same with zsh into ~/.zshrc, after
    compinit. For fish write it to ~/.config/fish/completions/mfg-notify.fish.
    """
    script = get_completion_class(shell)
    if script is None:
        raise UsageError(f"there is no completion for {shell}")
    click.echo(script(main, {}, "mfg-notify", "_MFG_NOTIFY_COMPLETE").source())


for command in (backfill, dashboards, demo, doctor, migrate, rules, run, simulate, tail, verify_command):
    main.add_command(command)
