"""Owns what the demo and the tests play with: an embedded PostgreSQL, the game's tables and a simulated game.

The exporter itself never imports this package.
"""
