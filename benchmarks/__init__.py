"""What the exporter costs, and how fast it is: `make bench` measures everything and writes docs/performance.md.

Nothing here is a test. Whatever is compared is measured in alternating rounds of one run.
"""
