"""Pictures with captions: folders and data sets -> checked records -> encoded stores."""

from spinlite.data.encoded import Encoded, Progress, chunks
from spinlite.data.records import Record, Show, Survey, listing, shows
from spinlite.data.sources import sources_of, where
from spinlite.data.split import split
from spinlite.data.survey import survey

__all__ = [
    "Encoded", "Progress", "Record", "Show", "Survey", "chunks", "listing", "shows", "sources_of", "split", "survey", "where",
]  # fmt: skip
