"""Writes the dashboards that the builders make. With --check, reports those that are out of date."""

import sys
import warnings
from pathlib import Path

FOLDER = Path(__file__).parent / "dashboards"


def main() -> int:
    """Write or check every dashboard."""
    check = "--check" in sys.argv[1:]
    # The SDK recommends Grafana's newer schema, but provisioned files still use the classic one.
    warnings.filterwarnings("ignore", "Prefer using dashboardv2", DeprecationWarning)
    from mfg_notify.dashboards.document import documents

    stale = []
    for name, text in documents().items():
        file = FOLDER / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(file)
            if not check:
                file.write_text(text, encoding="utf-8")
    for file in stale:
        print(f"grafana/dashboards/{file.name} {'is out of date: run make dashboards' if check else 'written'}")  # noqa: T201
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
