from pathlib import Path


def register(runs: Path) -> None: ...
