"""What a file of published numbers holds (``sweeps/papers/*.published.yaml``)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from clray.documents import parse_table, read_yaml
from clray.options import Count, Table
from clray.places import Document

Text = Annotated[str, Field(min_length=1)]


class PublishedRow(Table):
    """One number of a paper: the accuracy averaged over all tasks after the last one, as mean over repeats."""

    method: Text = Field(description="what the paper calls it")
    point: Annotated[dict[str, Any], Field(min_length=1)] = Field(description="dotted keys, as in the cases of the sweep file")
    mean: Annotated[float, Field(ge=0.0, le=100.0)] = Field(description="percent")
    sem: Annotated[float, Field(ge=0.0)] = Field(description="standard error of the mean, points")
    n: Count = Field(description="repeats (seeds)")
    source: Text = Field(description="paper and table")


class Published(Table):
    """The published numbers that belong to one sweep file."""

    rows: Annotated[list[PublishedRow], Field(min_length=1)]


def read_published(path: Path) -> tuple[Published, Document]:
    """Reads and validates a file, and says where in it things stand.

    Raises:
        ConfigError: it is not valid; one message with every problem.
    """
    document = read_yaml(path)
    return parse_table(document, Published), document
