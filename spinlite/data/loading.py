"""Reads pictures and clips for the encoder: decoded, resized and cropped to their shape."""

from collections.abc import Iterator

from PIL import Image

from spinlite.config.settings import Data
from spinlite.data.buckets import crop_centre
from spinlite.data.clips import fingerprint_clip, open_clip, times_of
from spinlite.data.items import Item, Loaded
from spinlite.data.pictures import decode, mirror, read_bytes, resize_and_crop
from spinlite.errors import SpinliteError
from spinlite.families.picture import ClipRule, Picture
from spinlite.runs.files import fingerprint_bytes


def load(item: Item, settings: Data) -> Loaded:
    """In a thread: read and crop a picture or clip, unless its file has changed. Call it inside `silence_pillow`."""
    try:
        images = _images(item, settings.background)
        first = next(images, None)
        if first is None:
            return Loaded(item, {}, changed=True)
        size, centre = (item.shape[0], item.shape[1]), crop_centre(item.key, settings.crop)
        frames = [resize_and_crop(first, size, centre), *(resize_and_crop(image, size, centre) for image in images)]
    except SpinliteError as error:
        return Loaded(item, {}, error.problem.removeprefix(f"{item.path.name}: "))
    both = {flip: _joined([mirror(frame) for frame in frames] if flip else frames) for flip in item.flips}
    return Loaded(item, {name: both[flip] for name, flip in zip(item.names(), item.flips, strict=True)})


def _images(item: Item, background: str) -> Iterator[Image.Image]:
    """The frames of an item; none if its file is not the one that was looked at."""
    if clip := item.clip:
        if fingerprint_clip(item.path) == clip.file:
            count = item.shape[2] if len(item.shape) > 2 else 1
            yield from open_clip(item.path, ClipRule(clip.fps, 1, count), background).frames(
                times_of(clip.start, count, clip.fps)
            )
        return
    content = read_bytes(item.path)
    if fingerprint_bytes(content) == item.key:
        yield decode(content, item.path, background=background)[0]


def _joined(frames: list[Picture]) -> Picture:
    """The frames as one picture with the others behind it."""
    first = frames[0]
    return Picture(first.image, first.original_size, first.crop, tuple(frame.image for frame in frames[1:]))
