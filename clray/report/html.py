"""Pieces of the page: escaped text, tables, and figures as inline SVG whose colours follow the page's."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from clray.report.figures.style import DARK

HUES = {light: f"--c{index}" for index, light in enumerate(DARK)}
"""Colours of figures to the CSS variables that stand for them."""


def text(value: Any) -> str:
    """Escaped for HTML."""
    return html.escape(str(value))


def element(tag: str, content: str = "", **attributes: Any) -> str:
    """``<tag attributes>content</tag>``; content is HTML, attributes are escaped. ``class_`` stands for class."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{text(value)}"' for name, value in attributes.items() if value is not None)
    return f"<{tag}{given}>{content}</{tag}>"


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        html: what is shown.
        sort: what the column is sorted by, where that differs from the text.
    """

    html: str
    sort: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        key: what filters and scripts call it.
        title: what is shown.
        note: shown on hovering.
        number: right-aligned.
        hidden: not visible before someone asks for it.
        best: "high" or "low", which end comes first when sorted.
    """

    key: str
    title: str
    note: str = ""
    number: bool = False
    hidden: bool = False
    best: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], interactive: bool = False, **attributes: Any) -> str:
    """A table; an interactive one sorts by a click on its heads (see assets/page.js)."""
    heads = []
    for column in columns:
        label = element("button", text(column.title), type="button") if interactive else text(column.title)
        flags = {"hidden": "hidden"} if column.hidden else {}
        heads.append(
            element(
                "th",
                label,
                scope="col",
                class_="n" if column.number else None,
                title=column.note or None,
                data_key=column.key,
                data_best=column.best or None,
                **flags,
            )
        )
    body = "\n".join(element("tr", "".join(_cell(column, cell) for column, cell in zip(columns, row, strict=True))) for row in rows)
    return element(
        "div", element("table", element("thead", element("tr", "".join(heads))) + element("tbody", body), **attributes), class_="scroll"
    )


def _cell(column: Column, cell: Cell) -> str:
    sort = None if cell.sort is None else f"{cell.sort:.6g}" if isinstance(cell.sort, float) else cell.sort
    flags = {"hidden": "hidden"} if column.hidden else {}
    return element("td", cell.html, class_="n" if column.number else None, data_v=sort, **flags)


def plain_table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A small table of text."""
    columns = [Column(str(index), title) for index, title in enumerate(titles)]
    return table(columns, [[Cell(text(value)) for value in row] for row in rows], class_="plain")


def definitions(entries: Mapping[str, str]) -> str:
    """Names and values; the values are HTML."""
    return element("dl", "".join(element("div", element("dt", text(name)) + element("dd", value)) for name, value in entries.items()))


def inline_svg(svg: str, prefix: str, description: str) -> str:
    """An SVG file as part of a page: ids made unique, colours replaced by the page's variables, size left to the page."""
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{prefix}-", body)
    for color, variable in HUES.items():
        body = body.replace(color, f"var({variable})")
    # The page's own fonts: those of the file may not be there.
    body = re.sub(r"font: ([^;\"]*?)(\d[\d.]*px) [^;\"]*", r"font-size: \2", body)
    head, rest = body.split(">", 1)
    view = re.search(r'viewBox="[^"]*"', head)
    opening = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {view[0] if view else ""} role="img" aria-label="{text(description)}">'
    return opening + rest.strip()


def variables(dark: bool) -> str:
    """The colours of figures as CSS."""
    return "".join(f"{HUES[light]}:{shade if dark else light};" for light, shade in DARK.items())
