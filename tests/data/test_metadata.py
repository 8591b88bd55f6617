"""What a file says beside its pixels never decides whether a picture is used, whatever is wrong with it."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms, PngImagePlugin

from spinlite.config.settings import Data
from spinlite.data.metadata import without_metadata
from spinlite.data.pictures import METADATA, PROFILE, open_picture, read_size, silence_pillow
from spinlite.data.survey import examine

RED, BLUE = (255, 0, 0), (0, 0, 255)
PNG = b"\x89PNG\r\n\x1a\n"


def exif(turn: int = 6) -> bytes:
    """EXIF with an orientation, a maker, and an exposure bias of -1/0, which Pillow can read but not write."""
    entries = [(0x112, 3, 1, struct.pack("<HH", turn, 0)), (0x9204, 10, 1, struct.pack("<I", 38))]
    body = b"".join(struct.pack("<HHI", *entry[:3]) + entry[3] for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + body + bytes(4) + struct.pack("<ii", -1, 0)


def lying() -> Image.Image:
    """Twice as wide as high, red on the left: upright it is red on top."""
    image = Image.new("RGB", (32, 16), RED)
    image.paste(BLUE, (16, 0, 32, 16))
    return image


def saved(path: Path, **how: Any) -> Path:
    lying().save(path, quality=100, **how)
    return path


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def put(path: Path, extra: bytes, after: bool = False) -> Path:
    """Put chunks into a PNG: before its pixels, or after them."""
    content = path.read_bytes()
    place = content.index(b"IEND" if after else b"IDAT") - 4
    path.write_bytes(content[:place] + extra + content[place:])
    return path


def read(path: Path) -> tuple[Image.Image, list[str]]:
    """(picture, what was said of it); its header tells the same size."""
    said: list[str] = []
    image = open_picture(path, lambda what, name: said.append(what))
    with silence_pillow():
        assert read_size(path)[0] == image.size
    return image, said


def is_upright(image: Image.Image) -> bool:
    top, bottom = (image.getpixel((8, y)) for y in (4, 28))
    return image.size == (16, 32) and top == pytest.approx(RED, abs=40) and bottom == pytest.approx(BLUE, abs=40)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tif", "avif"])
def test_a_picture_is_turned_by_its_orientation_alone(tmp_path: Path, ending: str):
    if ending == "tif":
        content = Image.Exif()
        content[0x112] = 6
        path = saved(tmp_path / "a.tif", exif=content)
    else:
        path = saved(tmp_path / f"a.{ending}", exif=exif())
    assert is_upright(read(path)[0])


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kept", [*range(6, 60, 3)])
def test_exif_that_is_cut_anywhere_is_no_reason_to_leave_a_picture_out(tmp_path: Path, ending: str, kept: int):
    image, said = read(saved(tmp_path / f"a.{ending}", exif=exif()[:kept]))
    assert image.size in ((32, 16), (16, 32)) and set(said) <= {METADATA}


def test_exif_that_can_not_be_read_is_said(tmp_path: Path):
    image, said = read(saved(tmp_path / "a.webp", exif=b"Exif\0\0no such thing"))
    assert image.size == (32, 16) and said == [METADATA]


PADDED = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes() + bytes(2**20)
TEXT = zlib.compress(b"x" * 2**21)
HUGE = zlib.compress(bytes(2**25))
CHUNKS: dict[str, tuple[bytes, list[str]]] = {
    "2 MB of text": (chunk(b"zTXt", b"workflow\0\0" + TEXT), []),
    "2 MB of text in Unicode": (chunk(b"iTXt", b"workflow\0\1\0\0\0" + TEXT), []),
    "100 MB of text": (chunk(b"zTXt", b"a\0\0" + HUGE) * 3, [METADATA]),
    "a profile of 1 MB": (chunk(b"iCCP", b"own\0\0" + zlib.compress(PADDED)), []),
    "a profile of 32 MB": (chunk(b"iCCP", b"own\0\0" + HUGE), [METADATA]),
    "text packed in an unknown way": (chunk(b"zTXt", b"a\0\7b"), [METADATA]),
    "a damaged time": (chunk(b"tIME", bytes(7))[:-1] + b"!", [METADATA]),
    "a damaged text": (chunk(b"tEXt", b"a\0b")[:-1] + b"!", [METADATA]),
}


@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after the pixels"])
@pytest.mark.parametrize("name", CHUNKS)
def test_a_chunk_of_a_png_is_no_reason_to_leave_it_out(tmp_path: Path, name: str, after: bool):
    extra, said = CHUNKS[name]
    image, seen = read(put(saved(tmp_path / "a.png", exif=exif()), extra, after))
    assert is_upright(image) and (seen == said or (after and set(seen) <= {METADATA}))


@pytest.mark.parametrize("extra", [chunk(b"eXIf", exif()[6:]), chunk(
    b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<rdf:Description tiff:Orientation="6"/>'
)], ids=["EXIF", "XMP"])  # fmt: skip
@pytest.mark.parametrize("after", [False, True], ids=["before the pixels", "after the pixels"])
def test_a_png_may_say_which_side_is_up_after_its_pixels(tmp_path: Path, extra: bytes, after: bool):
    image, said = read(put(saved(tmp_path / "a.png"), extra, after))
    assert is_upright(image) and not said


@pytest.mark.parametrize("segment", [
    b"\xff\xed\0\x1aPhotoshop 3.0\x008BIM\x03\xed\xff\0\0", b"\xff\xe0\0\x08JFIF\0\1", b"\xff\xee\0\x08Adobe\0",
])  # fmt: skip
def test_a_damaged_segment_of_a_jpeg_is_no_reason_to_leave_it_out(tmp_path: Path, segment: bytes):
    content = saved(tmp_path / "a.jpg", exif=exif(), comment=b"a").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[:2] + segment + content[2:])
    assert is_upright(read(tmp_path / "a.jpg")[0])


@pytest.mark.parametrize("ending", ["png", "jpg", "webp"])
def test_without_its_metadata_a_picture_has_the_same_pixels(tmp_path: Path, ending: str):
    about = PngImagePlugin.PngInfo()
    about.add_text("parameters", "x" * 100)
    how: dict[str, Any] = {"pnginfo": about} if ending == "png" else {"comment": b"x" * 100} if ending == "jpg" else {}
    content = saved(tmp_path / f"a.{ending}", exif=exif(), **how).read_bytes()
    bare = without_metadata(content)
    assert b"x" * 100 not in bare and (len(bare) < len(content) or ending == "webp")
    with Image.open(io.BytesIO(content)) as whole, Image.open(io.BytesIO(bare)) as rest:
        assert whole.tobytes() == rest.tobytes() and whole.getexif().get(0x112) == rest.getexif().get(0x112) == 6


def test_a_cut_file_stays_as_it_is_for_pillow_to_refuse(tmp_path: Path):
    for ending in ("png", "jpg"):
        content = saved(tmp_path / f"a.{ending}").read_bytes()
        for kept in range(0, len(content) - 40, 7):
            without_metadata(content[:kept])


def test_a_photo_of_108_megapixels_is_used(tmp_path: Path):
    header, row = struct.pack(">IIBBBBB", 12_000, 9_000, 1, 0, 0, 0, 0), zlib.compressobj(1)
    pixels = b"".join(row.compress(b"\0" + b"\xff" * 1_500) for _ in range(9_000)) + row.flush()
    path = tmp_path / "a.png"
    path.write_bytes(PNG + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    image, said = read(path)
    assert image.size == (12_000, 9_000) and not said


def test_headers_and_pixels_say_the_same_of_a_folder(swatches: Path, tmp_path: Path):
    """`check` reads headers, `train` decodes: the size, what is said, and what is used are the same."""
    for name, (extra, _) in CHUNKS.items():
        put(saved(swatches / f"{name}.png", exif=exif()), extra)
        (swatches / f"{name}.txt").write_text(name)
    saved(swatches / "cut.webp", exif=b"Exif\0\0no such thing")
    (swatches / "cut.txt").write_text("cut")
    quick, whole = (examine(Data(folder=str(swatches)), headers=headers) for headers in (True, False))
    assert not quick.unusable and not whole.unusable and quick.noted[METADATA] == whole.noted[METADATA]
    assert {path: look.size for path, look in quick.looks.items()} == {path: look.size for path, look in whole.looks.items()}
    assert PROFILE not in quick.noted
