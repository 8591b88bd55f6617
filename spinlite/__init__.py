"""spinlite: self-play fine-tuning of diffusion models on one consumer GPU."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036  (pip refuses too, but a copied folder does not ask pip)
    found = ".".join(map(str, sys.version_info[:2]))
    sys.exit("error: spinlite needs Python 3.11 or newer, this is " + found + "\nfix:   install a newer Python")

__version__ = "0.1.0"
