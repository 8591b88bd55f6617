"""Hashes of contents. Nothing here needs torch."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def fingerprint(*parts: Any) -> str:
    """16 hex digits: the hash of `parts`, which may be anything that JSON can write."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def fingerprint_files(paths: Iterable[Path]) -> str:
    """16 hex digits: the hash of the contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def fingerprint_bytes(content: bytes) -> str:
    """16 hex digits: the hash that `fingerprint_files` gives for one file with this content."""
    return hashlib.sha256(hashlib.sha256(content).digest()).hexdigest()[:16]
