"""Processes and what they started."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from clray.process_tree import birth_of, command_of, descendants, end_processes

PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("on", flush=True)
time.sleep(60)
"""


def test_children_and_their_children_are_found_and_ended() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    parent.stdout.readline()
    family = descendants()
    grandchildren = descendants(parent.pid)
    assert parent.pid in family
    assert len(grandchildren) == 1
    assert grandchildren.items() <= family.items()
    assert "time.sleep(60)" in command_of(parent.pid)
    end_processes({parent.pid: family[parent.pid], **grandchildren})
    assert parent.wait(10) == -9
    assert birth_of(parent.pid) is None
    assert all(birth_of(pid) != born for pid, born in grandchildren.items())
    parent.stdout.close()


def test_a_later_process_of_the_same_number_is_left_alone() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    born = birth_of(child.pid)
    assert born is not None
    end_processes({child.pid: born - 1})
    time.sleep(0.1)
    assert child.poll() is None
    child.kill()
    child.wait()


def test_a_process_that_is_not_there_has_no_birth_and_no_command() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert (birth_of(child.pid), command_of(child.pid)) == (None, "")
    assert birth_of(os.getpid()) == birth_of(os.getpid())
