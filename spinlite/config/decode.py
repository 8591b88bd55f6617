"""Texts that users write: presets, prompts, captions, tables."""

from spinlite.errors import SpinliteError

MARKS = (b"\xff\xfe", b"\xfe\xff")  # with which UTF-16 begins, as PowerShell's `>` and Notepad's "Unicode" write it
NUL = b"\0"  # in UTF-16 every other byte of an English text


def decode(content: bytes, name: str) -> str:
    """The text of a file in UTF-8, or in UTF-16 that says so at its start. Raises SpinliteError, which names it, for others."""
    try:
        text = content.decode("utf-16" if content[:2] in MARKS else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # UTF-16 without a mark passes as UTF-8
        fix = "save it as UTF-8 (Notepad: Save as, Encoding), or name another file"
        raise SpinliteError(f"{name} is not UTF-8{' (UTF-16?)' * (NUL in content)}", fix=fix)
    return text
