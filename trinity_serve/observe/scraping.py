"""What Prometheus and Grafana have to be told to show a server of this machine: their files."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit

import yaml

from trinity_serve.observe import dashboard

Yaml: TypeAlias = "str | int | bool | Sequence[Yaml] | Mapping[str, Yaml] | None"

DISCOVERY_FILE = "prom_metrics_service_discovery.json"
FRESH_S = 60.0
"""Ray writes the file every five seconds: an older one is of a Ray that has ended."""
SCRAPE_INTERVAL = "5s"


@dataclass(frozen=True, slots=True)
class Direct:
    """A server whose own `/metrics` is read; its names get the prefix that Ray would give."""

    url: str
    api_key: str = ""
    ca_file: Path | None = None


@dataclass(frozen=True, slots=True)
class ThroughRay:
    """Nodes whose agents Ray lists in a file."""

    discovery_file: Path


Target = Direct | ThroughRay


@dataclass(frozen=True, slots=True)
class Ports:
    """Where both listen, on loopback."""

    prometheus: int
    grafana: int


def find_ray(folders: Sequence[Path], now_s: float | None = None) -> ThroughRay | None:
    """Return the Ray below one of `folders` that wrote its list of nodes last, if one runs."""
    now_s = time.time() if now_s is None else now_s
    files = [
        file for folder in folders for file in (*folder.glob(DISCOVERY_FILE), *_sessions(folder))
    ]
    fresh = [file for file in files if now_s - file.stat().st_mtime < FRESH_S]
    newest = max(fresh, key=lambda file: file.stat().st_mtime, default=None)
    return None if newest is None else ThroughRay(newest.resolve())


def _sessions(folder: Path) -> list[Path]:
    return list(folder.glob(f"session_*/{DISCOVERY_FILE}"))


def ray_folders(temporary: Path) -> list[Path]:
    """Return where a Ray of this machine keeps its files, ours of mode local first."""
    return [*sorted(temporary.glob("trinity-*/ray")), temporary / "ray", Path("/tmp/ray")]


def write_files(folder: Path, target: Target, ports: Ports) -> None:
    """Write all that both programs read into `folder`, which is empty."""
    (folder / "prometheus.yml").write_text(prometheus_config(target, folder), encoding="utf8")
    (folder / "prometheus").mkdir()
    provisioning, dashboards = folder / "provisioning", folder / "dashboards"
    for made in (provisioning / "datasources", provisioning / "dashboards", dashboards):
        made.mkdir(parents=True)
    (dashboards / "trinity.json").write_text(dashboard.text(), encoding="utf8")
    rays = None if isinstance(target, Direct) else _dashboards_of(target.discovery_file)
    folders = [dashboards] if rays is None else [dashboards, rays]
    _write_yaml(provisioning / "datasources/trinity.yaml", _datasource(ports))
    _write_yaml(provisioning / "dashboards/trinity.yaml", _providers(folders))
    (folder / "grafana.ini").write_text(grafana_config(folder, ports), encoding="utf8")


def prometheus_config(target: Target, folder: Path) -> str:
    """Return prometheus.yml; what it has to read besides is written into `folder`."""
    job = _ray_job(target) if isinstance(target, ThroughRay) else _direct_job(target, folder)
    every: Yaml = {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL}
    return yaml.safe_dump({"global": every, "scrape_configs": [job]}, sort_keys=False)


def _ray_job(target: ThroughRay) -> Yaml:
    found: Yaml = [{"files": [str(target.discovery_file)], "refresh_interval": "5s"}]
    return {"job_name": "ray", "file_sd_configs": found}


def _direct_job(target: Direct, folder: Path) -> Yaml:
    parts = urlsplit(target.url)
    job: dict[str, Yaml] = {
        "job_name": "trinity",
        "scheme": parts.scheme,
        "metrics_path": "/metrics",
        "static_configs": [{"targets": [parts.netloc]}],
        "metric_relabel_configs": [
            {
                "source_labels": ["__name__"],
                "regex": "((?:trinity|vllm)_.*)",
                "target_label": "__name__",
                "replacement": f"{dashboard.PREFIX}$1",
            }
        ],
    }
    if target.api_key:
        key_file = folder / "api-key"
        key_file.touch(mode=0o600)
        key_file.write_text(target.api_key, encoding="utf8")
        job["authorization"] = {"type": "Bearer", "credentials_file": str(key_file)}
    if target.ca_file is not None:
        job["tls_config"] = {"ca_file": str(target.ca_file.resolve())}
    return job


def grafana_config(folder: Path, ports: Ports) -> str:
    """Return grafana.ini: loopback, no login, nothing from elsewhere, all files in `folder`."""
    sections: dict[str, dict[str, object]] = {
        "server": {"http_addr": "127.0.0.1", "http_port": ports.grafana},
        "paths": {
            "data": folder / "grafana",
            "logs": folder / "grafana/log",
            "plugins": folder / "grafana/plugins",
            "provisioning": folder / "provisioning",
        },
        "auth": {"disable_login_form": "true"},
        "auth.anonymous": {"enabled": "true", "org_role": "Viewer"},
        "dashboards": {"default_home_dashboard_path": folder / "dashboards/trinity.json"},
        "analytics": {
            "reporting_enabled": "false",
            "check_for_updates": "false",
            "check_for_plugin_updates": "false",
        },
        "news": {"news_feed_enabled": "false"},
    }
    lines = []
    for section, keys in sections.items():
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in keys.items()), ""]
    return "\n".join(lines)


def _datasource(ports: Ports) -> Yaml:
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "type": "prometheus",
                "access": "proxy",
                "url": f"http://127.0.0.1:{ports.prometheus}",
                "isDefault": True,
                "jsonData": {"timeInterval": SCRAPE_INTERVAL},
            }
        ],
    }


def _providers(folders: Sequence[Path]) -> Yaml:
    return {
        "apiVersion": 1,
        "providers": [
            {"name": f"{folder}", "type": "file", "options": {"path": str(folder)}}
            for folder in folders
        ],
    }


def _dashboards_of(discovery_file: Path) -> Path | None:
    """Return the folder of the dashboards that Ray ships, written at its start, if it is there."""
    for base in (discovery_file.parent, discovery_file.parent / "session_latest"):
        folder = base / "metrics/grafana/dashboards"
        if folder.is_dir():
            return folder.resolve()
    return None


def _write_yaml(path: Path, content: Yaml) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf8")
