"""Measures cost and speed of the exporter: `make bench` measures everything and writes it into docs/explanation.

These are no tests. What is compared is measured in alternating rounds of one run.
"""
