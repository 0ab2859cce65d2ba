"""Owns the alerting rules as shipped, and writes them for a Prometheus with another job name or another runbook."""

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mfg_notify.errors import OptionError, UsageError
from mfg_notify.files import readable_errors, replace_file

NAMES = ("exporter.yml", "game.yml")
JOB = "mfg-notify"
RUNBOOK = "docs/how-to/answer-an-alert.md"
"""Relative to the repository, so not a link that an Alertmanager can follow."""


def read_rules(name: str, job: str = JOB, runbook_url: str = RUNBOOK) -> str:
    """Return the YAML of a file of rules that select a job and link to the sections of a runbook."""
    text = _folder().joinpath(name).read_text(encoding="utf-8")
    text = text.replace(f'job="{JOB}"', f'job="{job}"')
    return text.replace(f"runbook_url: {RUNBOOK}#", f"runbook_url: {runbook_url.rstrip('#')}#")


def write_rules(folder: Path, job: str = JOB, runbook_url: str = RUNBOOK, *, force: bool = False) -> list[Path]:
    """Write all files of rules into a folder, creating it if necessary; return the files that changed.

    Raises UsageError, and writes nothing, if a file there does not begin as ours do, unless `force` is given.
    """
    if any(not character.isprintable() or character in '"\\' for character in job):
        raise OptionError("a job name with quotes, backslashes or control characters cannot be written into the rules")
    if any(character.isspace() or not character.isprintable() for character in runbook_url):
        raise OptionError("the address of the runbook must not contain spaces or control characters")
    with readable_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        texts = {folder / name: read_rules(name, job, runbook_url) for name in NAMES}
        before = {file: file.read_text(encoding="utf-8") for file in texts if file.exists()}
    for file, text in before.items():
        if not force and text.partition("\n")[0] != texts[file].partition("\n")[0]:
            raise UsageError(
                f"{file} exists and was not made by mfg-notify. Name another folder, or replace the file with --force"
            )
    changed = [file for file, text in texts.items() if before.get(file) != text]
    for file in changed:
        replace_file(file, texts[file])
    return changed


def _folder() -> Traversable:
    # A wheel carries the files in the package; a checkout has them in its top folder.
    packaged = files(__package__).joinpath("rules")
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "prometheus" / "rules"
