"""`python -m mfg_notify` is the command `mfg-notify`."""

from mfg_notify.cli import main

if __name__ == "__main__":
    main()
