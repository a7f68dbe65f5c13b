"""`trinity certs`: certificates for the links between a cluster's processes."""

from __future__ import annotations

from pathlib import Path

import click

from trinity_serve.certificates import write_certificates


@click.command("certs")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--host",
    "hosts",
    multiple=True,
    required=True,
    help="A node's address as others connect to it; once for each.",
)
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True)
def command(folder: Path, hosts: tuple[str, ...], days: int) -> None:
    """Write a CA and one certificate for each host into FOLDER.

    Copy FOLDER/HOST to each host, to the same path everywhere, and name its files in
    security.tls_cert_file, tls_key_file and tls_ca_file. Called again it renews the certificates
    under the same CA; running processes take the new files without a restart. ca.key stays here.
    """
    for written in write_certificates(folder, hosts, days):
        click.echo(written)
