"""Documents of which a command writes a part: what stands between two marks."""

from __future__ import annotations

import re


def put_between(text: str, marks: tuple[str, str], part: str) -> str:
    """A text with the part between two marks replaced."""
    pattern = re.compile(f"{re.escape(marks[0])}.*{re.escape(marks[1])}", re.DOTALL)
    return pattern.sub(lambda _: f"{marks[0]}{part}{marks[1]}", text)
