"""`trinity observe`: Prometheus and Grafana over a running server, until Ctrl-C."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import click

from trinity_serve.observe.programs import ProgramError, commands, find_programs, running
from trinity_serve.observe.scraping import (
    Direct,
    Ports,
    Target,
    ThroughRay,
    find_ray,
    ray_folders,
    write_files,
)
from trinity_serve.stopping import stop_on_signals

CHECK_EVERY_S = 0.2
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("observe")
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The server.")
@click.option("--direct", is_flag=True, help="Read the server's own /metrics, not Ray's agents.")
@click.option("--ray-folder", type=FOLDER, help="Ray's temporary folder; default: one that runs.")
@click.option(
    "--api-key",
    envvar="TRINITY_API_KEY",
    show_envvar=True,
    default="",
    help="Where /metrics asks for one.",
)
@click.option("--ca-file", type=FILE, help="Who signed the server's certificate.")
@click.option("--prometheus-port", type=int, default=9090, show_default=True)
@click.option("--grafana-port", type=int, default=3000, show_default=True)
@click.option("--grafana-home", type=FOLDER, help="Grafana's own files, when not beside its bin.")
def command(
    url: str,
    direct: bool,
    ray_folder: Path | None,
    api_key: str,
    ca_file: Path | None,
    prometheus_port: int,
    grafana_port: int,
    grafana_home: Path | None,
) -> None:
    """Start Prometheus and Grafana with Trinity's dashboard; end both on Ctrl-C.

    All their files are in a temporary folder and go with it.
    """
    ports = Ports(prometheus_port, grafana_port)
    try:
        programs = find_programs(grafana_home=grafana_home)
        target = choose_target(Direct(url, api_key, ca_file), direct, ray_folder)
        with stop_on_signals() as stop, _folder() as name:
            folder = Path(name)
            write_files(folder, target, ports)
            with running(commands(programs, folder, ports), folder) as children:
                click.echo(describe(target, ports))
                while not stop.is_set:
                    for child in children:
                        child.check()
                    time.sleep(CHECK_EVERY_S)
    except ProgramError as error:
        raise click.ClickException(str(error)) from error


def choose_target(server: Direct, direct: bool, ray_folder: Path | None) -> Target:
    """Return Ray's agents where Ray runs, or the server itself. Raises `click.UsageError`."""
    if direct:
        return server
    folders = [ray_folder] if ray_folder else ray_folders(Path(tempfile.gettempdir()))
    found = find_ray(folders)
    if ray_folder and found is None:
        raise click.UsageError(f"no Ray that runs writes into {ray_folder}")
    return found or server


def describe(target: Target, ports: Ports) -> str:
    """Return what is shown, and where."""
    what = (
        f"Ray's agents, listed in {target.discovery_file} (--direct: /metrics of the server)"
        if isinstance(target, ThroughRay)
        else f"{target.url}/metrics"
    )
    return (
        f"Reading {what}\n"
        f"Grafana:    http://127.0.0.1:{ports.grafana}/d/trinity-serve\n"
        f"Prometheus: http://127.0.0.1:{ports.prometheus}\n"
        f"Ctrl-C ends both."
    )


def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="trinity-observe-")
