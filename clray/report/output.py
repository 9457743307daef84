"""The files of a report: figures as PNG and SVG, tables as CSV and Parquet, and the page that shows them."""

from __future__ import annotations

import io
from collections.abc import Callable

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from clray.report.figures.style import COLUMN_INCHES, figure_bytes, styled
from clray.report.html import element, inline_svg, text
from clray.store.filesystem import Storage, join_path

FOLDER = "report"
FIGURES, TABLES = "figures", "tables"
REM_PER_INCH = 7.2
"""How large wide figures are at most, so that their text is about as large as in the others."""


class ReportFiles:
    """Writes ``report/`` of a sweep.

    Args:
        storage: the sweep's folder.
        advance: called once a figure.
    """

    def __init__(self, storage: Storage, advance: Callable[[], None] = lambda: None):
        self._storage = storage
        self._advance = advance
        self._written: set[str] = set()
        self._figures = 0

    def figure(self, name: str, make: Callable[[], Figure], caption: str, data: pd.DataFrame | None = None) -> str:
        """Makes a figure, writes it and its data, and returns it for the page.

        Args:
            caption: HTML.
            data: what the figure shows.
        """
        with styled():
            made = make()
        svg = figure_bytes(made, "svg")
        self._put(f"{FIGURES}/{name}.png", figure_bytes(made, "png"))
        self._put(f"{FIGURES}/{name}.svg", svg)
        links = [(f"{FIGURES}/{name}.{kind}", kind.upper()) for kind in ("png", "svg")]
        if data is not None:
            self.table(name, data)
            links += [(f"{TABLES}/{name}.csv", "CSV"), (f"{TABLES}/{name}.parquet", "Parquet")]
        self._figures += 1
        self._advance()
        plot = element("div", inline_svg(svg.decode(), f"f{self._figures}", name.replace("-", " ")), class_="plot")
        width = made.get_figwidth()
        wide = {"class_": "wide", "style": f"max-width:{width * REM_PER_INCH:.0f}rem"} if width > 1.2 * COLUMN_INCHES else {}
        return element("figure", plot + element("figcaption", caption + _links(links)), **wide)

    def table(self, name: str, frame: pd.DataFrame) -> str:
        """Writes a table and returns links to its files."""
        self._put(f"{TABLES}/{name}.csv", frame.to_csv(index=False).encode())
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), buffer, compression="zstd")
        self._put(f"{TABLES}/{name}.parquet", buffer.getvalue())
        return _links([(f"{TABLES}/{name}.csv", "CSV"), (f"{TABLES}/{name}.parquet", "Parquet")])

    def text(self, name: str, content: str) -> None:
        """Writes a text file beside the page."""
        self._put(name, content.encode())

    def page(self, content: str) -> str:
        """Writes the page, then removes figures and tables of earlier reports that this one does not show.

        Returns:
            Where the page is.
        """
        self._put("index.html", content.encode())
        for folder in (FIGURES, TABLES):
            for name in self._storage.list_names(join_path(FOLDER, folder)):
                if f"{folder}/{name}" not in self._written:
                    self._storage.remove_file(join_path(FOLDER, folder, name))
        return self._storage.shown(f"{FOLDER}/index.html")

    def _put(self, path: str, data: bytes) -> None:
        self._storage.replace_bytes(join_path(FOLDER, path), data)
        self._written.add(path)


def _links(links: list[tuple[str, str]]) -> str:
    return " " + element("span", " ".join(element("a", text(label), href=path) for path, label in links), class_="files")
