"""The Serve file as a whole, checked strictly.

Serve's own schema accepts unknown keys at every level, so a misspelt key there would silently do
nothing. These models name the keys this project supports and where each of ours belongs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import ConfigError
from trinity_serve.config.problems import as_mapping, problems_of
from trinity_serve.config.security import check_network_access
from trinity_serve.config.serve_config import PoolTarget, ServeConfig, is_loopback

APPLICATION_IMPORT_PATH = "trinity_serve.app:build"

_BELONGS_UNDER_ARGS: dict[str, str] = {
    "num_replicas": "num_replicas",
    "ray_actor_options": "resources",
    "max_ongoing_requests": "max_open_requests (ingress) or max_waiting (attention)",
    "max_queued_requests": "max_open_requests (ingress) or max_waiting (attention)",
}
_SECTION_OF: dict[str, str] = {
    "Ingress": "ingress",
    "AttentionRank": "attention",
    "ExpertPool": "experts",
}


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _HttpOptions(_Part):
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    request_timeout_s: float | None = Field(default=None, gt=0)
    keep_alive_timeout_s: int | None = Field(default=None, gt=0)
    root_path: str | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    ssl_ca_certs: str | None = None


class _LoggingConfig(_Part):
    encoding: Literal["TEXT", "JSON"] = "TEXT"
    log_level: int | str = "INFO"
    logs_dir: str | None = None
    enable_access_log: bool = True


class _RuntimeEnv(_Part):
    env_vars: dict[str, str] = Field(default_factory=dict)
    working_dir: str | None = None


class _ControllerOptions(_Part):
    runtime_env: _RuntimeEnv = _RuntimeEnv()


class _Deployment(_Part):
    name: Literal["Ingress", "AttentionRank", "ExpertPool"]
    user_config: PoolTarget | None = None


class _Application(_Part):
    name: str = Field(min_length=1)
    route_prefix: str = "/"
    import_path: str
    runtime_env: _RuntimeEnv = _RuntimeEnv()
    logging_config: _LoggingConfig | None = None
    external_scaler_enabled: bool = False
    deployments: list[_Deployment] = Field(default_factory=list)
    args: ServeConfig


class _ServeFile(_Part):
    proxy_location: Literal["Disabled", "HeadOnly", "EveryNode"] = "EveryNode"
    http_options: _HttpOptions = _HttpOptions()
    controller_options: _ControllerOptions | None = None
    logging_config: _LoggingConfig | None = None
    applications: list[_Application] = Field(min_length=1, max_length=1)


def parse_serve_args(args: Mapping[str, object], source: str = "args") -> ServeConfig:
    """Parse what Serve hands to the builder. Raises `ConfigError` with the first finding."""
    try:
        return ServeConfig.model_validate(args)
    except ValidationError as error:
        raise problems_of(error, source, "", ServeConfig)[0] from error


def find_problems(path: str | Path) -> list[ConfigError]:
    """Return everything that is wrong with the Serve file at `path`; empty when it is right."""
    source = str(path)
    try:
        raw = _read(path)
    except ConfigError as error:
        return [error]
    misplaced = _misplaced_keys(raw, source)
    try:
        serve_file = _ServeFile.model_validate(raw)
    except ValidationError as error:
        named = {problem.key for problem in misplaced}
        found = problems_of(error, source, "", _ServeFile)
        return misplaced + [problem for problem in found if problem.key not in named]
    return misplaced + _contradictions(serve_file, source)


def check_ray_config(path: str | Path) -> ServeConfig:
    """Check the Serve file at `path` as a whole and return its `ServeConfig`.

    Raises `ConfigError` with the first finding: a key that is unknown or in the wrong place, by its
    full name; a value or combination that is not allowed, with the reason.
    """
    problems = find_problems(path)
    if problems:
        raise problems[0]
    return _ServeFile.model_validate(_read(path)).applications[0].args


def load_serve_config(path: str | Path) -> ServeConfig:
    """Return the `ServeConfig` in the Serve file at `path`, the scale in `user_config` applied.

    Raises `ConfigError` as `check_ray_config`.
    """
    config = check_ray_config(path)
    for deployment in _ServeFile.model_validate(_read(path)).applications[0].deployments:
        if deployment.user_config is not None:
            target = deployment.user_config.model_dump()
            experts = config.experts.model_copy(update=target)
            config = config.model_copy(update={"experts": experts})
    return config


def _read(path: str | Path) -> Mapping[str, object]:
    source = str(path)
    try:
        return as_mapping(yaml.safe_load(Path(path).read_text()), source, "the whole file")
    except OSError as error:
        raise ConfigError(source, "the file", str(error), "a readable file") from error
    except yaml.YAMLError as error:
        raise ConfigError(source, "the whole file", f"not YAML: {error}", "YAML") from error


def _misplaced_keys(raw: Mapping[str, object], source: str) -> list[ConfigError]:
    """Find deployment settings that Serve would take from the file, past our `args`."""
    problems = []
    for where, deployment in _deployments(raw):
        section = _SECTION_OF.get(str(deployment.get("name")), "SECTION")
        for key in deployment.keys() & _BELONGS_UNDER_ARGS.keys():
            target = _BELONGS_UNDER_ARGS[key]
            problem = f"misplaced: this deployment is configured by args.{section}.{target}"
            problems.append(ConfigError(source, f"{where}.{key}", problem, "name, user_config"))
    return sorted(problems, key=lambda problem: problem.key)


def _deployments(raw: Mapping[str, object]) -> list[tuple[str, Mapping[str, object]]]:
    found: list[tuple[str, Mapping[str, object]]] = []
    applications = raw.get("applications")
    for app_idx, app in enumerate(applications if isinstance(applications, list) else []):
        deployments = app.get("deployments") if isinstance(app, Mapping) else None
        for idx, deployment in enumerate(deployments if isinstance(deployments, list) else []):
            if isinstance(deployment, Mapping):
                found.append((f"applications[{app_idx}].deployments[{idx}]", deployment))
    return found


def _contradictions(serve_file: _ServeFile, source: str) -> list[ConfigError]:
    """Find keys that are each allowed but not together."""
    app = serve_file.applications[0]
    problems = []
    if app.import_path != APPLICATION_IMPORT_PATH:
        where = "applications[0].import_path"
        problem = f"{app.import_path!r} is not this project's builder"
        problems.append(ConfigError(source, where, problem, APPLICATION_IMPORT_PATH))
    if app.args.mode != "cluster":
        problem = f"a Serve file is for a cluster, not for mode {app.args.mode}"
        problems.append(ConfigError(source, "applications[0].args.mode", problem, "cluster"))
    timeout_s = serve_file.http_options.request_timeout_s
    deadline_s = app.args.ingress.request_timeout_s
    if timeout_s is not None and timeout_s < deadline_s:
        where = "http_options.request_timeout_s"
        problem = f"{timeout_s:g} would cut requests before args.ingress.request_timeout_s"
        problems.append(ConfigError(source, where, problem, f"{deadline_s:g} or more"))
    host = serve_file.http_options.host
    try:
        check_network_access(host, app.args.security, is_loopback=is_loopback(host))
    except ValueError as error:
        supported = "API keys, or a loopback address"
        problems.append(ConfigError(source, "http_options.host", str(error), supported))
    return problems + _doubled_scale(app, source)


def _doubled_scale(app: _Application, source: str) -> list[ConfigError]:
    problems = []
    for idx, deployment in enumerate(app.deployments):
        where = f"applications[0].deployments[{idx}].user_config"
        if deployment.user_config is None:
            continue
        if deployment.name != "ExpertPool":
            problem = f"{deployment.name} has nothing that changes while serving"
            problems.append(ConfigError(source, where, problem, "user_config of ExpertPool"))
        else:
            for key in sorted(PoolTarget.model_fields.keys() & app.args.experts.model_fields_set):
                problem = f"given twice: here and as args.experts.{key}"
                supported = "one of them; a change in user_config restarts nothing"
                problems.append(ConfigError(source, f"{where}.{key}", problem, supported))
    return problems
