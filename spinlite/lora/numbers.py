"""A tensor as a safetensors file stores it, and its numbers in fp32. bf16 and fp8, which numpy lacks, are decoded here."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float32]]
PLAIN = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1", "U64": "<u8", "U32": "<u4",
    "U16": "<u2", "U8": "<u1", "BOOL": "?",
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor in a file. `dtype` is safetensors' code, e.g. "F16"."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @property
    def is_known(self) -> bool:
        """Whether `numbers` can decode its type."""
        return self.dtype in (*PLAIN, "BF16", "F8_E5M2", "F8_E4M3")

    @property
    def is_whole(self) -> bool:
        """Whether it holds numbers, and only finite ones; a type that isn't known passes."""
        return 0 not in self.shape and (not self.is_known or bool(np.isfinite(self.numbers()).all()))

    def numbers(self) -> Array:
        """The numbers in fp32, as a copy. Raises ValueError if they are of a type that isn't known here, such as F4."""
        if self.dtype in PLAIN:
            flat = np.frombuffer(self.data, PLAIN[self.dtype])
        elif self.dtype == "BF16":
            flat = (np.frombuffer(self.data, "<u2").astype(np.uint32) << 16).view(np.float32)
        elif self.dtype == "F8_E5M2":  # the first byte of an fp16
            flat = (np.frombuffer(self.data, np.uint8).astype(np.uint16) << 8).view(np.float16)
        elif self.dtype == "F8_E4M3":
            flat = _e4m3()[np.frombuffer(self.data, np.uint8)]
        else:
            raise ValueError(f"numbers of type {self.dtype}")
        with np.errstate(over="ignore"):  # fp64 beyond fp32 becomes infinite, which is refused where it is used
            return flat.astype(np.float32).reshape(self.shape)


class Matrices(NamedTuple):
    """A module's change as numpy arrays, in the shapes of `tensors.Pair`: up @ down, with alpha / rank multiplied into `up`."""

    down: Array
    up: Array

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight that it changes."""
        return (self.up.shape[0], *self.down.shape[1:])

    def norm(self) -> float:
        """The Frobenius norm of the change, computed from (rank, rank) matrices instead of the change itself."""
        up, down = self.up.reshape(len(self.up), -1), self.down.reshape(len(self.down), -1)
        tops = float(np.abs(up).max()), float(np.abs(down).max())
        if 0.0 in tops:
            return 0.0
        up, down = up / np.float32(tops[0]), down / np.float32(tops[1])  # squares of tiny changes would be 0 in fp32
        square = np.sum((up.T @ up) * (down @ down.T), dtype=np.float64)
        return tops[0] * tops[1] * math.sqrt(max(float(square), 0.0))


def _e4m3() -> Array:
    """The value of each byte as an fp8 with 4 bits of exponent and 3 of fraction; 0x7f and 0xff are NaN."""
    byte = np.arange(256)
    exponent, fraction = (byte >> 3) & 15, byte & 7
    values = np.where(exponent == 0, fraction / 8 * 2.0**-6, (1 + fraction / 8) * 2.0 ** (exponent - 7))
    values[byte & 0x7F == 0x7F] = np.nan
    return np.where(byte < 128, values, -values).astype(np.float32)
