"""The page as a whole: one HTML file that needs nothing else."""

from __future__ import annotations

import datetime
from importlib import metadata, resources

from clray.report.html import element, text, variables

SECTIONS = (("sweep", "sweep"), ("all-trials", "trials"), ("single", "single trials"), ("drift", "drift"), ("origin", "how it was made"))
# Nothing may be loaded from anywhere, whatever ends up in the page.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def asset(name: str) -> str:
    """A file of the folder assets."""
    return resources.files("clray.report").joinpath("assets", name).read_text(encoding="utf-8")


def page(name: str, sections: list[str]) -> str:
    """The whole document.

    Args:
        name: of the sweep.
        sections: HTML of each.
    """
    made = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    links = "".join(element("a", text(title), href=f"#{place}") for place, title in SECTIONS)
    colors = f":root{{{variables(dark=False)}}}@media (prefers-color-scheme:dark){{@media screen{{:root{{{variables(dark=True)}}}}}}}"
    head = [
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        '<meta name="color-scheme" content="light dark">',
        # An icon that is there, so that browsers do not ask for one.
        '<link rel="icon" href="data:,">',
        element("title", text(f"{name}: clray report")),
        element("style", colors + asset("page.css")),
    ]
    header = element(
        "header", element("h1", text(name)) + element("p", f"clray {metadata.version('clray')}, page made {made}") + element("nav", links)
    )
    body = header + element("main", "\n".join(sections)) + element("script", asset("page.js"))
    return f'<!doctype html>\n<html lang="en">\n{element("head", "".join(head))}\n{element("body", body)}\n</html>\n'
