"""Writes the PrometheusRule that carries the alerting rules. With --check, reports it if it is out of date."""

import sys
from pathlib import Path

FILE = Path(__file__).parent / "kubernetes" / "prometheusrule.yaml"
HEAD = """\
# The alerting rules of prometheus/rules for the Prometheus Operator. Made by deploy/generate.py: run make rule.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: mfg-notify
  labels: {app.kubernetes.io/name: mfg-notify}
spec:
  groups:
"""


def prometheus_rule() -> str:
    """Return the manifest: the groups of all files as they are."""
    from mfg_notify.alerts import NAMES, read_rules

    # Items of a list may stand below its key, so the text stays as it is.
    return HEAD + "\n".join(read_rules(name).partition("\ngroups:\n")[2] for name in NAMES)


def main() -> int:
    """Write or check the manifest."""
    check, text = "--check" in sys.argv[1:], prometheus_rule()
    if FILE.exists() and FILE.read_text(encoding="utf-8") == text:
        return 0
    if not check:
        FILE.write_text(text, encoding="utf-8")
    print(f"deploy/kubernetes/{FILE.name} {'is out of date: run make rule' if check else 'written'}")  # noqa: T201
    return int(check)


if __name__ == "__main__":
    sys.exit(main())
