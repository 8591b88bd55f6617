"""What a picture's file says beside its pixels: text, EXIF, profiles. None of it decides whether the picture is used."""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
PROFILE_BYTES = 2**24  # of a PNG's colour profile, unpacked: a larger one is not read
PIXELS = (b"IDAT", b"IEND")
LATE = (b"eXIf", b"iTXt", b"tEXt", b"zTXt")  # chunks that may follow a PNG's pixels, and say which side is up
KEPT = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}  # chunks of a PNG that change how its pixels look, but for iCCP
APPS = {0xE1: b"Exif\0\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe\0d"}  # such segments of a JPEG


def without_metadata(content: bytes) -> bytes:
    """A PNG or JPEG without its text, and without chunks that are damaged; any other file as it is."""
    try:
        if content.startswith(PNG):
            file = io.BytesIO(content)
            return PNG + b"".join(content[a:b] for kind, a, b in _chunks(file) if _is_needed(kind, content[a:b]))
        return _bare_jpeg(content) if content.startswith(JPEG) else content
    except (struct.error, IndexError):
        return content


def header_of(file: BinaryIO) -> BinaryIO:
    """A PNG's file without its pixels, with the metadata that follows them put before them; any other file as it is."""
    parts, late, pixels = [PNG], [], 0
    try:
        if file.read(len(PNG)) == PNG:
            for kind, start, end in _chunks(file):
                pixels += kind == b"IDAT"
                if pixels and kind in (b"fcTL", b"fdAT"):  # the second frame: Pillow reads no further
                    break
                if kind not in PIXELS and (kind in LATE or not pixels):
                    file.seek(start)
                    (late if pixels else parts).append(file.read(end - start))
    except struct.error:
        late = []
    if late:
        ends = b"".join(struct.pack(">I4sI", 0, kind, zlib.crc32(kind)) for kind in PIXELS)
        return io.BytesIO(b"".join([*parts, *late]) + ends)
    file.seek(0)
    return file


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of each chunk of a PNG whose magic was read. Raises struct.error where the file ends too early."""
    kind, start = b"", len(PNG)
    while kind != b"IEND":
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        yield kind, start, start + 12 + length
        start += 12 + length


def _is_needed(kind: bytes, chunk: bytes) -> bool:
    if not kind[0] & 0x20:  # an upper case letter: critical
        return True
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        return False
    return kind in KEPT or (kind == b"iCCP" and _fits(chunk))


def _fits(chunk: bytes) -> bool:
    unpacker = zlib.decompressobj()
    try:
        unpacker.decompress(chunk[chunk.index(b"\0", 8) + 2 : -4], PROFILE_BYTES)
    except (ValueError, zlib.error):
        return False
    return not unpacker.unconsumed_tail


def _bare_jpeg(content: bytes) -> bytes:
    parts, start = [JPEG], 2
    while content[start] == 0xFF and content[start + 1] != 0xDA:  # the pixels
        marker, length = struct.unpack_from(">BH", content, start + 1)
        end = start + 2 + length
        is_about = 0xE0 <= marker <= 0xEF or marker == 0xFE
        if not is_about or (length > 12 and marker in APPS and content.startswith(APPS[marker], start + 4)):
            parts.append(content[start:end])
        start = end
    return b"".join([*parts, content[start:]])
