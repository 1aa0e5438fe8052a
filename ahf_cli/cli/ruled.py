"""Tables on a terminal: ruled where it is wide enough, aligned text elsewhere."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ahf_cli.cli.options import say

if TYPE_CHECKING:
    import pandas as pd


def print_tables(texts: dict[str, pd.DataFrame]) -> None:
    """Print tables of text under their titles."""
    from ahf_cli.report.text import as_text, is_words

    if sys.stdout.isatty():
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table

        console, all_ruled = Console(), []
        for title, rows in texts.items():
            ruled = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
            for name in rows.columns:
                ruled.add_column(name, justify="left" if is_words(rows[name]) else "right", no_wrap=True)
            for row in rows.itertuples(index=False):
                ruled.add_row(*map(str, row))
            all_ruled.append(ruled)
        # In a narrow terminal, rich would cut digits off.
        unbounded = console.options.update(width=10_000)
        if all(console.measure(r, options=unbounded).maximum <= console.width for r in all_ruled):
            console.print(*all_ruled)
            return
    say(as_text(texts) + "\n")
