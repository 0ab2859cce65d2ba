"""What `mfg-notify tail` does: it prints change events as they happen, and counts those that it could not print.

`follower` receives events and reads the journal, `gaps` knows which events are missing, `output` prints.
"""
