"""The Grafana dashboards: builders, the JSON that is made from them, and the merge into a dashboard of someone else.

`panels`, `manufacturing`, `market` and `document` build, and need grafana-foundation-sdk, a development dependency.
`shipped`, `files` and `merge` work on the JSON alone, and are all that the command needs.
"""
