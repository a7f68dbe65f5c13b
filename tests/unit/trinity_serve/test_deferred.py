from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from trinity_serve.app import OPEN_RANK, OPEN_SERVICE, OPEN_SHARD
from trinity_serve.deferred import Deferred


@pytest.mark.parametrize("deferred", [OPEN_RANK, OPEN_SERVICE, OPEN_SHARD])
def test_what_the_application_names_is_there(deferred: Deferred[..., object]) -> None:
    assert callable(deferred.resolve())


def test_it_calls_what_it_names_also_after_a_journey() -> None:
    join: Deferred[[str, str], str] = Deferred("posixpath", "join")
    assert pickle.loads(pickle.dumps(join))("a", "b") == "a/b"


def test_a_name_that_is_not_there_is_refused_when_it_is_called() -> None:
    nothing: Deferred[[], None] = Deferred("posixpath", "nothing")
    with pytest.raises(AttributeError, match="nothing"):
        nothing()


@pytest.mark.parametrize(
    "module", ["trinity_serve.app", "trinity_serve.ingress", "trinity_serve.parts.service"]
)
def test_a_process_that_does_not_compute_loads_no_torch(module: str) -> None:
    script = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
