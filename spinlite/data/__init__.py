"""Pictures with captions: folders and data sets -> checked records -> encoded stores."""

from spinlite.data.buckets import Grid
from spinlite.data.encoded import Encoded, Progress, chunks, runs
from spinlite.data.records import Record, Show, Survey, listing, shows, strangers
from spinlite.data.sources import sources_of, where
from spinlite.data.split import split
from spinlite.data.survey import survey

__all__ = [
    "Encoded", "Grid", "Progress", "Record", "Show", "Survey", "chunks", "listing", "runs", "shows", "sources_of",
    "split", "strangers", "survey", "where",
]  # fmt: skip
