"""Bytes to text, and broken Polish names mended, once per distinct string.

Bronze keeps the payload as it came; what is found here travels beside it.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from functools import lru_cache

import ftfy

_BOMS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_ONE_BYTE_ENCODINGS = ("sloppy-windows-1250", "sloppy-windows-1252", "iso-8859-2", "latin-1")
_SPECIAL = re.compile('["\r]')  # what makes a line of CSV more than fields between commas
_LETTERS = frozenset("ąćęłńóśźżĄĆĘŁŃÓŚŹŻ")
_POLISH = re.compile(f"[{''.join(sorted(_LETTERS))}–—„”’]")
_ASCII = bytes(range(128))


def detect_encoding(payload: bytes) -> str:
    """Python's name for the payload's encoding: by byte-order mark, else UTF-8 where valid or nearly so (one
    torn name must not cost all others), else whichever of the two legacy Polish encodings (cp1250,
    iso-8859-2) gives more Polish letters."""
    for bom, name in _BOMS:
        if payload.startswith(bom):
            return name
    if is_utf8(payload):
        return "utf-8"
    text = payload.decode("utf-8", "replace")
    if text.count("\ufffd") < len(_POLISH.findall(text)):
        return "utf-8"
    return max(("cp1250", "iso-8859-2"), key=lambda name: _polish_letters(payload, name))


def is_utf8(payload: bytes) -> bool:
    """Whether the payload is valid UTF-8, which SQL decodes itself."""
    try:
        payload.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _polish_letters(payload: bytes, encoding: str) -> int:
    return len(_POLISH.findall(payload.decode(encoding, "replace")))


def decode(payload: bytes, encoding: str) -> str:
    """The payload's text; bytes that the encoding does not know become U+FFFD."""
    return payload.decode(encoding, "replace")


def mend_names(text: str) -> str | None:
    """JSON object of every mojibake field of a CSV text and its mended form, or None where all is well.

    Keys are fields as a CSV reader would give them (unquoted). Shape: '{"PrzejĹ›cie": "Przejście"}'.
    A field whose only foreign letters are Polish is well.
    """
    if _is_well(text):
        return None
    lines = [line for line in text.split("\n") if not line.isascii()]
    fields = {name for line in lines for name in _fields(line) if not name.isascii()}
    mended = {name: _mend(name) for name in sorted(fields)}
    changed = {name: good for name, good in mended.items() if good != name}
    return json.dumps(changed, ensure_ascii=False) if changed else None


def _is_well(text: str) -> bool:
    foreign = text.encode("utf-8", "surrogatepass").translate(None, _ASCII)
    return _LETTERS.issuperset(foreign.decode("utf-8", "surrogatepass"))


def _fields(line: str) -> list[str]:
    line = line.rstrip("\r")
    if not _SPECIAL.search(line) and len(line) <= csv.field_size_limit():
        return line.split(",")  # most lines by far
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # a field of over 131 072 characters is no name
        return []


@lru_cache(maxsize=65536)
def _mend(name: str) -> str:
    # Only the encoding is mended: ftfy.fix_text would also rewrite quotes and ligatures of good names.
    return name if _is_well(name) else _mend_polish(name, times=2) or ftfy.fix_encoding(name)


def _mend_polish(name: str, times: int) -> str | None:
    """Undo UTF-8 read as a one-byte encoding, once or `times`, where ftfy is too careful (`Ĺšrubowa`): text
    that turns back into valid UTF-8 whose only foreign characters are Polish was never meant as it stands.

    `Ĺš` is Ś by cp1250 and Ź by iso-8859-2; where nothing else in the name decides, cp1250 is taken.
    """
    texts = (_undo(name, encoding) for encoding in _ONE_BYTE_ENCODINGS)
    undone = [text for text in texts if text is not None and text != name]
    for text in undone:
        if _POLISH.sub("", text).isascii():
            return text
    deeper = (_mend_polish(text, times - 1) for text in undone if times > 1)
    return next((text for text in deeper if text is not None), None)


def _undo(name: str, encoding: str) -> str | None:
    try:
        return name.encode(encoding).decode("utf-8")
    except UnicodeError:
        return None
