"""The last section of the page: how the results were made, and how to make them again."""

from __future__ import annotations

import io
import posixpath
import shlex
from collections.abc import Mapping
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

from clray.report.figures.sweep import phases_figure
from clray.report.html import element, plain_table, text
from clray.report.output import ReportFiles
from clray.report.page_sweep import attempts_of
from clray.report.page_trial import ShownTrial
from clray.report.sweep_files import SweepFiles

SWEEP_FILE = "sweep.yaml"


def origin_section(sweep: SweepFiles, files: ReportFiles, shown: list[ShownTrial], folder: str) -> str:
    """Section 4.

    Args:
        folder: the sweep's folder as it was given on the command line.
    """
    document = {key: value for key, value in sweep.document.items() if key != "versions"}
    parts = []
    if document:
        files.text(SWEEP_FILE, yaml_text(document))
        parts.append(_commands(sweep, folder))
        parts.append(element("h3", "The sweep file") + element("pre", text(yaml_text(document))))
    else:
        parts.append(element("p", "The folder has no sweep.yaml, or it cannot be read.", class_="problem"))
    parts.append(_versions(sweep))
    parts.append(_phases(sweep, files))
    for trial in shown:
        parts.append(_trial(sweep, trial))
    return element("section", element("h2", "How it was made") + "".join(parts), id="origin")


def yaml_text(data: Mapping[str, Any]) -> str:
    """Plain data as YAML 1.2."""
    stream = io.StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = None
    yaml.width = 100
    yaml.dump(dict(data), stream)
    return stream.getvalue()


def _commands(sweep: SweepFiles, folder: str) -> str:
    output, _, last = folder.rstrip("/").rpartition("/")
    lines = [f"clray report {shlex.quote(folder)}"]
    if last == sweep.name:
        # The same name below the same output is the same folder: what is done there is kept.
        place = posixpath.join(folder.rstrip("/"), "report", SWEEP_FILE)
        lines = [f"clray sweep {shlex.quote(place)} --output {shlex.quote(output or '.')}", *lines]
    note = "The first command runs what is missing, and everything where the folder is empty." if len(lines) > 1 else ""
    return element("h3", "Commands") + element("pre", text("\n".join(lines))) + element("p", note)


def _versions(sweep: SweepFiles) -> str:
    versions = sweep.document.get("versions") or {}
    if not isinstance(versions, dict) or not versions:
        return ""
    return element("h3", "Versions") + plain_table(("package", "version"), sorted(versions.items()))


def _phases(sweep: SweepFiles, files: ReportFiles) -> str:
    phases = {trial_id: seconds for trial_id, seconds in sweep.phases.items() if seconds}
    if not phases:
        return ""
    frame = pd.DataFrame.from_dict(phases, orient="index").rename_axis("trial_id").reset_index()
    caption = "Phases overlap. Trials that ran in one program each show the seconds of that whole program."
    return element("h3", "Seconds by phase") + element(
        "div", files.figure("phases", lambda: phases_figure(phases), caption, frame), class_="figures"
    )


def _trial(sweep: SweepFiles, trial: ShownTrial) -> str:
    titles = ("attempt", "host", "start", "end", "outcome", "error")
    attempts = attempts_of(sweep, trial.files.trial_id)
    body = plain_table(titles, attempts) if attempts else element("p", "It was not begun.")
    if trial.files.config:
        body += element("pre", text(yaml_text(trial.files.config)))
    return element("details", element("summary", text(f"{trial.files.trial_id}: attempts and whole experiment")) + body)
