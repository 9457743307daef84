"""clray: continual-learning experiments as compiled JAX programs, swept over Ray.

import clray
clray.sweep("sweeps/quickstart.yaml")
results = clray.open("results/quickstart")
results.trials
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clray.config import Experiment
    from clray.results import SweepResults

__version__ = "0.1.0"
__all__ = ["__version__", "open", "run", "sweep"]


def run(
    experiment: str | os.PathLike[str] | Mapping[str, Any] | Experiment,
    output: str | os.PathLike[str] = "results",
    settings: Mapping[str, Any] | None = None,
    force: bool = False,
) -> SweepResults:
    """Runs one experiment in this process, without Ray; what is committed already is kept.

    Args:
        experiment: file, plain data of the same form, or an ``Experiment``.
        output: folder or URL; files go to ``<output>/<name>/``.
        settings: dotted key to value, as ``--set`` on the command line.
        force: take the folder over from another driver that still holds it.

    Returns:
        The results, as ``open`` gives them.

    Raises:
        UserError: the input or the output is not valid, or the trial failed.
    """
    from clray.trials.entry import run_experiment

    return run_experiment(experiment, os.fspath(output), settings, force)


def sweep(
    sweep: str | os.PathLike[str] | Mapping[str, Any],
    output: str | os.PathLike[str] = "results",
    settings: Mapping[str, Any] | None = None,
    address: str | None = None,
    local: bool = False,
    retry_failed: bool = False,
    force: bool = False,
) -> SweepResults:
    """Runs a sweep on Ray, or with ``local=True`` in this process; what is finished already is kept.

    Args:
        sweep: file, or plain data of the same form.
        output: folder or URL; files go to ``<output>/<name>/``.
        settings: dotted key to value into the experiment, as ``--set`` on the command line.
        address: of a Ray cluster; None starts one on this machine.
        retry_failed: also run failed trials again.
        force: take the folder over from another driver that still holds it.

    Raises:
        UserError: the input, the output or the cluster is not valid. Failed trials do not raise: see ``trials``.
    """
    from clray.trials.entry import run_sweep

    return run_sweep(sweep, os.fspath(output), settings, address, local, retry_failed, force)


def open(folder: str | os.PathLike[str]) -> SweepResults:
    """Opens the folder of a sweep, finished or running. See ``clray.results``."""
    from clray.results import open_results

    return open_results(folder)
