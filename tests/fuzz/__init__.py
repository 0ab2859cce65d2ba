"""Fuzzing: generated input against everything that reads what others have written.

`test_fuzz.py` runs each target briefly with every test run, and `make fuzz` runs them in turn for an hour. A target
owns its input and what must hold for every input; `all_targets.py` lists them.
"""
