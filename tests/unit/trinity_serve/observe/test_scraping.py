"""What Prometheus and Grafana are told: valid, on loopback, under the names that are asked for."""

from __future__ import annotations

import configparser
import json
import os
import re
from pathlib import Path

import pytest
import yaml

from trinity_serve.observe import dashboard
from trinity_serve.observe.scraping import (
    DISCOVERY_FILE,
    FRESH_S,
    Direct,
    Ports,
    Target,
    ThroughRay,
    find_ray,
    prometheus_config,
    ray_folders,
    write_files,
)
from trinity_serve.observe.specs import INGRESS_SPECS, RANK_SPECS

PORTS = Ports(19090, 13000)


def job_of(target: Target, folder: Path) -> dict[str, object]:
    config = yaml.safe_load(prometheus_config(target, folder))
    (job,) = config["scrape_configs"]
    assert isinstance(job, dict)
    return job


def ray_in(folder: Path, *, age_s: float = 0.0, now_s: float = 1000.0) -> Path:
    folder.mkdir(parents=True)
    file = folder / DISCOVERY_FILE
    file.write_text(json.dumps([{"labels": {"job": "ray"}, "targets": ["127.0.0.1:1"]}]))
    os.utime(file, (now_s - age_s, now_s - age_s))
    return file


def test_a_server_without_ray_is_read_under_the_names_that_ray_would_give(tmp_path: Path) -> None:
    job = job_of(Direct("http://127.0.0.1:8123"), tmp_path)
    assert job["static_configs"] == [{"targets": ["127.0.0.1:8123"]}]
    rules = job["metric_relabel_configs"]
    assert isinstance(rules, list)
    (rule,) = rules
    for spec in (*INGRESS_SPECS, *RANK_SPECS):
        for series in spec.series:
            match = re.fullmatch(rule["regex"], series)
            assert match
            renamed = rule["replacement"].replace("$1", match[1])
            assert renamed == f"{dashboard.PREFIX}{series}"
    assert not re.fullmatch(rule["regex"], "python_gc_objects_collected_total")


def test_keys_and_certificates_are_named_and_a_key_is_readable_for_its_owner_alone(
    tmp_path: Path,
) -> None:
    ca_file = tmp_path / "ca.pem"
    job = job_of(Direct("https://example.test", "secret", ca_file), tmp_path)
    assert job["scheme"] == "https"
    assert job["tls_config"] == {"ca_file": str(ca_file)}
    authorization = job["authorization"]
    assert isinstance(authorization, dict)
    key_file = Path(authorization["credentials_file"])
    assert key_file.read_text() == "secret"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert "secret" not in prometheus_config(Direct("https://e.test", "secret"), tmp_path)


def test_on_ray_the_list_of_nodes_that_ray_writes_is_followed(tmp_path: Path) -> None:
    job = job_of(ThroughRay(Path("/ray/list.json")), tmp_path)
    assert job["file_sd_configs"] == [{"files": ["/ray/list.json"], "refresh_interval": "5s"}]
    assert "metric_relabel_configs" not in job


def test_the_ray_that_writes_now_is_found_wherever_it_keeps_its_list(tmp_path: Path) -> None:
    ray_in(tmp_path / "trinity-old" / "ray", age_s=FRESH_S + 1)
    older = ray_in(tmp_path / "trinity-a" / "ray", age_s=20.0)
    folders = ray_folders(tmp_path)[:-1]  # the last one is the machine's own
    assert find_ray(folders, 1000.0) == ThroughRay(older)
    newer = ray_in(tmp_path / "ray" / "session_1", age_s=2.0)
    assert find_ray(ray_folders(tmp_path)[:-1], 1000.0) == ThroughRay(newer)


def test_a_ray_that_has_ended_is_not_found(tmp_path: Path) -> None:
    ray_in(tmp_path / "trinity-old" / "ray", age_s=FRESH_S + 1)
    assert find_ray(ray_folders(tmp_path)[:-1], 1000.0) is None


def test_grafana_finds_source_and_dashboard_and_listens_on_loopback(tmp_path: Path) -> None:
    write_files(tmp_path, Direct("http://127.0.0.1:8000"), PORTS)
    ini = configparser.ConfigParser()
    ini.read(tmp_path / "grafana.ini")
    assert ini["server"]["http_addr"] == "127.0.0.1"
    assert ini["server"]["http_port"] == "13000"
    assert ini["analytics"]["reporting_enabled"] == "false"
    provisioning = Path(ini["paths"]["provisioning"])
    (source,) = yaml.safe_load((provisioning / "datasources/trinity.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://127.0.0.1:19090"
    (provider,) = yaml.safe_load((provisioning / "dashboards/trinity.yaml").read_text())[
        "providers"
    ]
    (file,) = Path(provider["options"]["path"]).iterdir()
    assert file.read_text(encoding="utf8") == dashboard.text()


def test_rays_own_dashboards_are_shown_beside_ours(tmp_path: Path) -> None:
    discovery_file = ray_in(tmp_path / "session_1")
    shipped = discovery_file.parent / "metrics/grafana/dashboards"
    shipped.mkdir(parents=True)
    folder = tmp_path / "files"
    folder.mkdir()
    write_files(folder, ThroughRay(discovery_file), PORTS)
    text = (folder / "provisioning/dashboards/trinity.yaml").read_text()
    paths = [each["options"]["path"] for each in yaml.safe_load(text)["providers"]]
    assert paths == [str(folder / "dashboards"), str(shipped.resolve())]


@pytest.mark.parametrize("target", [Direct("http://h:1"), ThroughRay(Path("/x/list.json"))])
def test_nothing_is_written_outside_the_folder(tmp_path: Path, target: Target) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    write_files(folder, target, PORTS)
    assert list(tmp_path.iterdir()) == [folder]
