"""The command `spinlite`, also as `python -m spinlite`. Ctrl-C is no traceback, also while its parts are being imported."""

import sys

from spinlite.errors import STOPPED


def main() -> None:
    """The entry point."""
    try:
        from spinlite.cli.app import main as run

        run()
    except KeyboardInterrupt:
        print(STOPPED)
        sys.exit(130)


if __name__ == "__main__":
    main()
