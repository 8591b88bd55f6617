"""`python -m spinlite`."""

from spinlite.cli.app import main

main()
