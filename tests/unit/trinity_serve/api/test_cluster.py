"""Admin routes: who may call them, what they answer, and what they refuse."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
import pytest
from fastapi import FastAPI

from cluster.errors import AdminRefusedError, ConfigError
from cluster.expert_map import ExpertMap, describe_experts
from cluster.membership import Membership
from cluster.planner import check_scale
from cluster.pool_messages import Scale, ShardKey, Target
from cluster.pool_status import OperationStatus, PoolStatus, describe_operation, describe_pool
from tests.support.pool import NUM_EXPERTS, NUM_LAYERS, World
from trinity_serve.admin_token import FILE_HEADER, FILE_NAME, AdminToken, read_token
from trinity_serve.api.cluster import cluster_router
from trinity_serve.api.errors import install_error_handlers
from trinity_serve.api.ranks import RankStatus
from trinity_serve.engine.request import EngineStats


@dataclass
class PoolInMemory:
    """A `ClusterAdmin` over shards that obey."""

    world: World = field(
        default_factory=lambda: World(Membership(NUM_LAYERS, NUM_EXPERTS, Scale.of(Target(2))))
    )
    num_ranks: int = 1
    can_change_shards: bool = True

    def __post_init__(self) -> None:
        self.world.settle()

    async def status(self) -> PoolStatus:
        return describe_pool(self.world.pool, self.world.now_s)

    async def scale(self, target: Target | None, operation_id: str) -> OperationStatus:
        wanted = self.world.pool.scale.configured if target is None else target
        return describe_operation(self.world.pool.scale_to(wanted, operation_id))

    async def scale_ranks(self, num_ranks: int) -> None:
        if num_ranks > 4:
            raise ConfigError("scale", "num_ranks", f"is {num_ranks}", "up to 4")
        self.num_ranks = num_ranks

    async def ranks(self) -> list[RankStatus]:
        return [RankStatus.of("rank-0", EngineStats(num_running=3, kv_usage=0.5))]

    async def experts(self) -> ExpertMap:
        return describe_experts(self.world.pool.placement, np.ones((NUM_LAYERS, NUM_EXPERTS)))

    async def kill_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        return self.world.pool.kill(shard, incarnation, self.world.now_s)

    async def drain_shard(self, shard: int, incarnation: int | None) -> ShardKey:
        return self.world.pool.drain(shard, incarnation)


@pytest.fixture
def pool() -> PoolInMemory:
    return PoolInMemory()


@pytest.fixture
def token(tmp_path: Path) -> AdminToken:
    return AdminToken.open(tmp_path)


@pytest.fixture
def app(pool: PoolInMemory, token: AdminToken) -> FastAPI:
    app = FastAPI()
    install_error_handlers(app)
    app.include_router(cluster_router(pool, token))
    return app


@pytest.fixture
async def http(app: FastAPI, token: AdminToken) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"Authorization": f"Bearer {token.token}"}
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=headers
    ) as client:
        yield client


async def test_the_cluster_is_told_with_shards_coverage_and_moves(http: httpx.AsyncClient) -> None:
    body = (await http.get("/v1/cluster")).json()
    assert body["covered"]
    assert [shard["state"] for shard in body["shards"]] == ["ready", "ready"]
    assert body["shards"][0]["num_experts_held"] == NUM_LAYERS * NUM_EXPERTS // 2
    assert (body["num_loads_left"], body["num_frees_left"]) == (0, 0)


async def test_a_failure_is_shown_with_its_reason(
    http: httpx.AsyncClient, pool: PoolInMemory
) -> None:
    pool.world.die(pool.world.living[1])
    body = (await http.get("/v1/cluster")).json()
    assert not body["covered"]
    assert body["failures"][0]["reason"] == "its process ended"


async def test_a_scale_begins_and_its_phases_can_be_asked_for(
    http: httpx.AsyncClient, pool: PoolInMemory
) -> None:
    answer = await http.post("/v1/cluster/scale", json={"shards": 3, "operation_id": "mine"})
    assert answer.status_code == 202
    assert answer.json()["target"] == {"num_shards": 3, "num_replicas": 1, "replica_bytes": 0}
    pool.world.tick()
    assert (await http.get("/v1/cluster")).json()["operation"]["phase"] == "starting"
    pool.world.settle()
    again = await http.post("/v1/cluster/scale", json={"shards": 3, "operation_id": "mine"})
    assert (again.json()["operation_id"], again.json()["phase"]) == ("mine", "done")


async def test_auto_returns_to_the_configuration(
    http: httpx.AsyncClient, pool: PoolInMemory
) -> None:
    await http.post("/v1/cluster/scale", json={"shards": 3})
    await http.post("/v1/cluster/scale", json={"auto": True})
    assert pool.world.pool.scale.target == Target(2)


async def test_ranks_are_set_alone_too(http: httpx.AsyncClient, pool: PoolInMemory) -> None:
    answer = await http.post("/v1/cluster/scale", json={"ranks": 2})
    assert (answer.status_code, answer.json(), pool.num_ranks) == (202, None, 2)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"replicas": 3}, "above num_shards 2"),
        ({"shards": 9}, "1 to 8"),
        ({"ranks": 9}, "up to 4"),
        ({}, "Give shards"),
        ({"auto": True, "shards": 2}, "together"),
        ({"shard": 2}, "shard"),
        ({"shards": 0}, "shards"),
    ],
)
async def test_a_scale_that_cannot_be_is_refused_with_the_reason(
    http: httpx.AsyncClient, body: dict[str, object], says: str
) -> None:
    answer = await http.post("/v1/cluster/scale", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]["message"]


async def test_without_the_token_nothing_is_told_but_where_it_lies(
    http: httpx.AsyncClient, token: AdminToken, pool: PoolInMemory
) -> None:
    for answer in (
        await http.get("/v1/cluster", headers={"Authorization": ""}),
        await http.post(
            "/v1/cluster/scale", json={"shards": 3}, headers={"Authorization": "Bearer no"}
        ),
    ):
        assert answer.status_code == 403
        assert answer.headers[FILE_HEADER] == str(token.path)
        assert token.token not in answer.text
    assert pool.world.pool.scale.target == Target(2)


async def test_a_caller_from_elsewhere_is_refused_with_the_token_too(
    app: FastAPI, token: AdminToken
) -> None:
    transport = httpx.ASGITransport(app, client=("10.0.0.7", 5000))
    headers = {"Authorization": f"Bearer {token.token}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/v1/cluster", headers=headers)
    assert answer.status_code == 403
    assert FILE_HEADER not in answer.headers


def test_the_token_file_is_made_once_and_for_this_user_alone(tmp_path: Path) -> None:
    first, second = AdminToken.open(tmp_path), AdminToken.open(tmp_path)
    assert first == second
    assert first.path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("name", "text", "mode"),
    [
        ("id_rsa", "0" * 64, 0o600),
        (FILE_NAME, "0" * 64, 0o644),
        (FILE_NAME, "PRIVATE KEY", 0o600),
    ],
)
def test_a_client_reads_no_file_that_is_not_a_token_file(
    tmp_path: Path, name: str, text: str, mode: int
) -> None:
    path = tmp_path / name
    path.write_text(text)
    path.chmod(mode)
    with pytest.raises(AdminRefusedError):
        read_token(path)


def test_a_link_to_another_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("0" * 64)
    (tmp_path / "other").chmod(0o600)
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "other")
    with pytest.raises(AdminRefusedError, match="cannot be read"):
        read_token(tmp_path / FILE_NAME)


def test_scales_are_checked_without_a_pool_too() -> None:
    check_scale(2, 2)
    with pytest.raises(ConfigError):
        check_scale(2, 3)


async def test_ranks_are_told_with_their_load(http: httpx.AsyncClient) -> None:
    body = (await http.get("/v1/cluster")).json()
    assert body["can_change_shards"]
    (rank,) = body["ranks"]
    assert (rank["rank"], rank["num_running"], rank["kv_usage"]) == ("rank-0", 3, 0.5)


async def test_experts_are_told_with_traffic_and_shards(
    http: httpx.AsyncClient, pool: PoolInMemory
) -> None:
    body = (await http.get("/v1/cluster/experts")).json()
    assert base64.b64decode(body["levels"]) == bytes([255]) * NUM_LAYERS * NUM_EXPERTS
    copies = np.frombuffer(base64.b64decode(body["copies"]), "<i2")
    assert set(copies.tolist()) == {0, 1}
    again = await http.get("/v1/cluster/experts", params={"known": body["placement"]})
    assert again.json()["copies"] is None


async def test_a_shard_is_killed_once_by_the_incarnation_that_was_told(
    http: httpx.AsyncClient, pool: PoolInMemory
) -> None:
    shard = (await http.get("/v1/cluster")).json()["shards"][1]
    order = {"incarnation": shard["incarnation"]}
    answer = await http.post("/v1/cluster/shards/1/kill", json=order)
    assert (answer.status_code, answer.json()) == (202, {"shard": 1, **order})
    pool.world.settle()
    again = await http.post("/v1/cluster/shards/1/kill", json=order)
    assert (again.status_code, again.json()["error"]["code"]) == (404, "no_such_shard")


async def test_a_shard_is_drained(http: httpx.AsyncClient, pool: PoolInMemory) -> None:
    assert (await http.post("/v1/cluster/shards/0/drain")).status_code == 202
    pool.world.tick()
    states = [shard["state"] for shard in (await http.get("/v1/cluster")).json()["shards"]]
    assert states == ["draining", "ready"]


async def test_a_drain_that_leaves_too_few_shards_is_refused_with_the_reason(
    http: httpx.AsyncClient, pool: PoolInMemory
) -> None:
    await http.post("/v1/cluster/scale", json={"shards": 1})
    pool.world.settle()
    answer = await http.post("/v1/cluster/shards/0/drain")
    assert answer.status_code == 400
    assert "0 others are there" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/cluster/experts"),
        ("POST", "/v1/cluster/shards/0/kill"),
        ("POST", "/v1/cluster/shards/0/drain"),
    ],
)
async def test_maps_and_orders_are_for_admins_alone(
    app: FastAPI, pool: PoolInMemory, method: str, path: str
) -> None:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as stranger:
        assert (await stranger.request(method, path)).status_code == 403
    assert not pool.world.pool.failures
