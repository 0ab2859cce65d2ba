"""What an operator asks when something looks wrong: `doctor` and `tail`. Both only read."""
