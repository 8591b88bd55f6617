"""What was simulated is kept, together with the batches that it holds for.

In fp32 a layer adds its LoRA to the base's weights where that is less work. It then needs room for those weights twice more, so
memory jumps at some batch size. A simulated batch therefore stands for one of another size: layers choose as they would there.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spinlite.lora import layer
from spinlite.plan.plan import cache_name
from spinlite.plan.simulation import SAMPLES

Choice = tuple[int, int, int, int, bool]  # what `merging_is_less_work` is given, with the places of one sample


class Known:
    """Simulations by name, also kept in a file of the folder `cache`, if there is one.

    They depend on `what` alone, beside the program: settings that JSON can hold.
    """

    def __init__(self, cache: Path | None, *what: Any) -> None:
        self._file = file = cache / f"{cache_name(*what)}.json" if cache else None
        self._rows: dict[str, list[dict[str, Any]]] = json.loads(file.read_text()) if file and file.exists() else {}

    def recall(self, name: str, samples: int, make: Callable[[], Any]) -> Any:
        """What `make` simulates of a batch of so many samples: known already, or made and kept. JSON can hold it."""
        rows = self._rows.setdefault(name, [])
        for row in rows:
            if are_alike(row["choices"], row["samples"], samples):
                return row["made"]
        with choosing_for(samples) as had:
            made = make()
        rows.append({"choices": sorted(had), "samples": samples, "made": made})
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            self._file.write_text(json.dumps(self._rows), encoding="utf-8")
        return made


@contextlib.contextmanager
def choosing_for(samples: int) -> Iterator[set[Choice]]:
    """Within the block layers choose as in a batch of so many samples; gives the choices that they had."""
    usual, had = layer.merging_is_less_work, set[Choice]()

    def choose(places: int, ins: int, outs: int, rank: int, learns: bool) -> bool:
        each, rest = divmod(places, SAMPLES)
        if rest:  # the same for every batch
            return usual(places, ins, outs, rank, learns)
        had.add((each, ins, outs, rank, learns))
        return usual(each * samples, ins, outs, rank, learns)

    layer.merging_is_less_work = choose
    try:
        yield had
    finally:
        layer.merging_is_less_work = usual


def are_alike(had: Sequence[Choice], samples: int, others: int) -> bool:
    """Whether layers that have these choices choose the same in batches of `samples` and of `others`."""
    return all(
        layer.merging_is_less_work(each * samples, ins, outs, rank, learns)
        == layer.merging_is_less_work(each * others, ins, outs, rank, learns)
        for each, ins, outs, rank, learns in had
    )
