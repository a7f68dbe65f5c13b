"""What is below a process is found, and gone when it is said to be gone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from trinity_serve.processes import descendants, end_processes, is_alive

TREE = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'])"


def test_children_of_children_are_found_and_ended() -> None:
    parent = subprocess.Popen([sys.executable, "-c", TREE], stdin=subprocess.PIPE)
    deadline_s = time.monotonic() + 10
    while len(below := [*descendants(parent.pid)]) < 1 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    assert below
    assert {each.pid for each in below} <= {each.pid for each in descendants(os.getpid())}
    end_processes(below, timeout_s=0.0)
    parent.wait(10)
    end_processes(below, timeout_s=5.0)
    assert not any(is_alive(each) for each in below)


def test_nothing_to_end_returns_at_once() -> None:
    end_processes([], timeout_s=60.0)
