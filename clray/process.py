"""Prepares a process for JAX: platform, memory and devices. Must run before JAX starts a backend."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from clray.errors import ResourceError

LANE_WIDTH = "CLRAY_LANE_WIDTH"
CGROUPS = Path("/sys/fs/cgroup")
GPU_DRIVERS = "/dev/nvidiactl", "/dev/kfd"


def available_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_bytes() -> int:
    """Memory that this process may use: the machine's, or what the control groups of a container or a batch job leave of it."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, group = line.split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            root, name = (CGROUPS / "memory", "memory.limit_in_bytes") if controllers else (CGROUPS, "memory.max")
            # A container may see the name of its group from outside, but has its limit at the root.
            for folder in (root / group.lstrip("/"), *(root / group.lstrip("/")).parents):
                with contextlib.suppress(OSError, ValueError):  # no limit is "max", or no file
                    limits.append(int((folder / name).read_text()))
                if folder == root:
                    break
    return min(limits)


def cpu_devices(num_cpus: float, in_process: bool) -> int:
    """CPU devices that train one trial: one for each whole CPU of a task, all that this process may use where it trains itself."""
    return available_cpus() if in_process else max(1, int(num_cpus))


def gpus_here() -> bool:
    """Whether this machine has GPUs that JAX may find; no backend is started."""
    return any(map(os.path.exists, GPU_DRIVERS))


def width_by_hand() -> int | None:
    """Lanes a chunk, where ``CLRAY_LANE_WIDTH`` sets them.

    Raises:
        ResourceError: it is not a width.
    """
    given = os.environ.get(LANE_WIDTH)
    if given is None:
        return None
    if not given.isdigit() or int(given) < 1:
        raise ResourceError(f"{LANE_WIDTH}={given}: not a number of lanes; use 1 or more, or leave it out")
    return int(given)


def configure_jax(num_cpus: float, num_gpus: float | None = None) -> None:
    """Gives JAX what the task was given.

    Args:
        num_cpus: one CPU device for each whole CPU.
        num_gpus: GPUs of the task; a fraction gets that part of the GPU's memory. None: whatever JAX finds.

    Where a backend runs already (inside a notebook, say) it stays as it is, and training uses as many CPU devices as it has.
    """
    if num_gpus == 0:
        os.environ["JAX_PLATFORMS"] = "cpu"
    elif num_gpus is not None and num_gpus < 1:
        os.environ["XLA_CLIENT_MEM_FRACTION"] = f"{0.9 * num_gpus:.4f}"
        os.environ.pop("XLA_PYTHON_CLIENT_MEM_FRACTION", None)  # its older name: JAX refuses to start with both
    if num_gpus is None:
        os.environ.setdefault("PJRT_NPROC", str(max(1, int(num_cpus))))
    else:  # a worker inherits the driver's environment, which is about the driver's own share
        os.environ["PJRT_NPROC"] = str(max(1, int(num_cpus)))
    import jax

    _keep_compiled_programs()
    with contextlib.suppress(RuntimeError):  # raised where a backend runs already
        jax.config.update("jax_num_cpu_devices", max(1, int(num_cpus)))
    if num_gpus:
        found = {device.platform for device in jax.local_devices()}
        if found == {"cpu"}:
            raise RuntimeError(f"the task was given {num_gpus:g} GPU but JAX sees only CPUs; install clray[cuda] on this node")


def compiled_folder() -> str | None:
    """The folder of this machine's own disk where what is compiled and measured is kept; None where nothing is.

    ``CLRAY_COMPILED_DIR`` names another folder, or ``off``. A folder of somebody else is not used.
    """
    folder = os.environ.get("CLRAY_COMPILED_DIR") or os.path.join(tempfile.gettempdir(), f"clray-compiled-{os.getuid()}")
    if folder == "off":
        return None
    with contextlib.suppress(OSError):
        os.makedirs(folder, mode=0o700, exist_ok=True)
        # Programs are loaded and run from there: nobody else may write it.
        return folder if os.stat(folder).st_uid == os.getuid() else None
    return None


def _keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs on this machine's own disk, so that the next process need not compile them again.

    JAX keys entries by its version, the program and the device, and compiles anew where an entry cannot be read. A cache that is
    set up by JAX's own options is left alone.
    """
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir", None):
        return
    folder = compiled_folder()
    if folder is not None:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
