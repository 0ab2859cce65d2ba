"""The Grafana dashboards: builders, the JSON that they make, and the merge into a user's own dashboard.

`panels`, `selectors`, `variables`, `manufacturing`, `exporter_health`, `market` and `document` build the dashboards and
need grafana-foundation-sdk, a development dependency. `shipped`, `files` and `merge` work on the JSON alone; the
command needs nothing else.
"""
