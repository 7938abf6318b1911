"""`python -m flowrl` is the command `flowrl`."""

from flowrl.cli.app import main

if __name__ == "__main__":
    main()
