"""The journal as a table (CSV), for spreadsheets and notebooks: a line for each event, a column for each figure."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from spinlite.runs.run import Run

FIRST = ("event", "time", "round", "update")  # columns; the others come in the order in which the journal first has them
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes text that begins so


def journal_table(folder: Path) -> bytes:
    """The table of a run. Raises SpinliteError if the folder is not a run.

    What a guard undid is there as "discarded update". Lists and tables within an event are JSON.
    """
    journal = Run.open_existing(folder).journal
    columns = list(dict.fromkeys([*FIRST, *(key for event in journal.every() for key in event)]))
    text = io.StringIO(newline="")
    table = csv.DictWriter(text, columns)
    table.writeheader()
    for event in journal.every():
        table.writerow({key: _cell(value) for key, value in event.items()})
    return text.getvalue().encode("utf-8-sig")  # Excel reads UTF-8 by this sign alone


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return f"'{value}" if value.startswith(FORMULA) else value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list | bool) else value
