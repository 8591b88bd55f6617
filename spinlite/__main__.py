"""`python -m spinlite`."""

from spinlite.cli import main

main()
