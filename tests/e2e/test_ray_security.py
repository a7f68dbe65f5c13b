"""The whole deployment on Ray, closed: API keys at its face, mutual TLS and tokens inside."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import yaml
from click.testing import CliRunner

from cluster.deadline import Deadline
from cluster.errors import LinkLostError, UnauthenticatedError
from cluster.tls import TlsFiles
from cluster.transport import transport_for
from cluster.transport.session import open_session
from cluster.wire import Hello
from experts.checkpoint import Checkpoint
from tests.e2e.conftest import RunningServer
from tests.integration.ray_deployment import base_config, free_port
from tests.integration.ray_server import RayServer, python, running
from tests.support.certificates import LOOPBACK, make_certificates
from tests.support.listening import listening_ports
from trinity_serve.arithmetic import Arithmetic
from trinity_serve.cli.main import trinity
from trinity_serve.config import parse_serve_args

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PROMPTS = [[7 + 3 * number, 11, 250 - number] for number in range(4)]
CONNECT_S = 3.0


def run(*arguments: str) -> str:
    """Run a command of ours and return its output's first line."""
    done = CliRunner().invoke(trinity, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()[0]


@dataclass(frozen=True)
class Closed:
    """A server, a key that it knows, and its hosts' certificate."""

    server: RayServer
    key: str
    tls: TlsFiles
    args: dict[str, Any]

    def shard_addresses(self) -> list[str]:
        """Return where shards listen for ranks: their only ports on loopback."""
        ports = [
            port
            for pid in self.server.pids("ray::ExpertShard")
            for port in listening_ports([pid])
            if port.is_loopback
        ]
        # The kernel may call the address by its IPv6 name.
        return [f"grpc://{LOOPBACK}:{port.port}" for port in ports]

    def hello(self, token: str) -> Hello:
        """Return the first frame of a rank of the very same model and arithmetic."""
        config = parse_serve_args(self.args)
        arithmetic = Arithmetic.settle(config, Checkpoint.open(config.model.path))
        # The newest epoch there could be: only the token can be what is refused.
        return Hello(arithmetic.fingerprint, 7, 1, 2**31, token)


def closed_config(checkpoint: Path, keys: str, tls: TlsFiles) -> dict[str, Any]:
    """Return a Serve file for one machine, whose processes talk over TCP as between hosts."""
    config = base_config(checkpoint, free_port())
    args = config["applications"][0]["args"]
    args["model"] |= {"served_name": "tiny", "dtype": "float32"}
    for section in ("attention", "experts"):
        args[section]["resources"]["labels"] = {}
    args["attention"]["num_replicas"] = 1
    files = zip(("tls_cert_file", "tls_key_file", "tls_ca_file"), tls.names, strict=True)
    args["security"] = {"api_keys_file": keys, **dict(files)}
    return config


@pytest.fixture(scope="module")
def closed(tiny_checkpoint: Path) -> Iterator[Closed]:
    with tempfile.TemporaryDirectory(prefix="t-") as name:
        folder = Path(name)
        key = run("keys", "new", "--name", "alice", "--file", str(folder / "keys"))
        run("certs", str(folder / "certs"), "--host", LOOPBACK)
        own = folder / "certs" / LOOPBACK
        tls = TlsFiles(*(str(own / name) for name in ("cert.pem", "key.pem", "ca.pem")))
        config = closed_config(tiny_checkpoint, str(folder / "keys"), tls)
        path = folder / "ray_config.yaml"
        path.write_text(yaml.safe_dump(config))
        command = python("-m", "trinity_serve.cli.main", "serve", str(path))
        with running(command, folder) as server:
            yield Closed(server, key, tls, config["applications"][0]["args"])


def complete(url: str, key: str, prompt: list[int]) -> tuple[list[int], list[float]]:
    """Return the tokens of a seeded request and their logprobs."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        answer = client.completions.create(
            model="tiny",
            prompt=prompt,
            max_tokens=16,
            temperature=0.9,
            seed=5,
            logprobs=1,
            extra_body={"return_token_ids": True, "ignore_eos": True},
        )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    ids: list[int] = (choice.model_extra or {})["token_ids"]
    return ids, [value or 0.0 for value in choice.logprobs.token_logprobs or []]


def test_a_caller_with_a_key_gets_what_inline_answers(
    closed: Closed, inline_process: RunningServer
) -> None:
    for prompt in PROMPTS:
        answer = complete(closed.server.endpoint, closed.key, prompt)
        assert len(answer[0]) == 16
        assert answer == complete(inline_process.url, "none", prompt)


@pytest.mark.parametrize("key", ["none", "sk-trinity-" + "0" * 43])
def test_a_caller_without_a_known_key_is_refused(closed: Closed, key: str) -> None:
    with pytest.raises(openai.AuthenticationError):
        complete(closed.server.endpoint, key, PROMPTS[0])


def test_a_shard_is_reached_with_the_clusters_certificate_alone(
    closed: Closed, tmp_path: Path
) -> None:
    addresses = closed.shard_addresses()
    assert len(addresses) == 2
    for address in addresses:
        for tls in (None, make_certificates(tmp_path)):
            with pytest.raises(LinkLostError):
                transport_for(address, tls).connect(address, Deadline.after(CONNECT_S))
        transport_for(address, closed.tls).connect(address, Deadline.after(CONNECT_S)).close()


@pytest.mark.parametrize("token", ["", "0" * 32])
def test_a_shard_refuses_a_rank_with_a_certificate_and_no_token(closed: Closed, token: str) -> None:
    address = closed.shard_addresses()[0]
    transport = transport_for(address, closed.tls)
    with pytest.raises(UnauthenticatedError):
        open_session(transport, address, closed.hello(token), Deadline.after(CONNECT_S))
