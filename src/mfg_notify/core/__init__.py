"""The pure core: what a change means. No I/O, no clock, no logging."""
