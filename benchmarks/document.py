"""Generated tables within hand-written prose."""

from __future__ import annotations

from ahf_cli.errors import InputError


def replace(text: str, key: str, tables: str, page: str = "docs/performance.md") -> str:
    """Put tables between the markers of a key, which are added under a heading where there are none.

    Raises InputError where one of the two markers is missing, or they are not in order.
    """
    begin, end = f"<!-- begin: {key} -->", f"<!-- end: {key} -->"
    if begin not in text and end not in text:
        text = f"{text.rstrip()}\n\n## {key}\n\n{begin}\n{end}\n"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise InputError(f"{page}: must hold {begin!r} and, after it, {end!r}, once each")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    return f"{before}{begin}\n\n{tables.strip()}\n\n{end}{after}"
