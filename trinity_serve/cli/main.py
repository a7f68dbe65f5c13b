"""Entry of the `trinity` command: finds the command's module, turns errors into one line.

Nothing of torch, Ray or pydantic is imported here, so that `trinity --help` answers at once.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click

from cluster.errors import TrinityError
from trinity_serve import __version__

EXIT_REFUSED = 2
EXIT_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class CommandEntry:
    """Where a command lives (its module has a `command`) and what it is for, in one line."""

    module: str
    help: str


COMMANDS = {
    "serve": CommandEntry("trinity_serve.cli.serve", "Serve a checkpoint over HTTP."),
    "scale": CommandEntry("trinity_serve.cli.scale", "Change how many shards and ranks serve."),
    "status": CommandEntry("trinity_serve.cli.status", "Show the shards of a running server."),
    "chat": CommandEntry("trinity_serve.cli.chat", "Talk to a running endpoint."),
    "observe": CommandEntry("trinity_serve.cli.observe", "Show dashboards of a running server."),
    "checkpoint": CommandEntry("trinity_serve.cli.checkpoint", "Write or inspect a checkpoint."),
    "keys": CommandEntry("trinity_serve.cli.keys", "Make and list API keys."),
    "certs": CommandEntry("trinity_serve.cli.certs", "Write certificates for a cluster."),
    "plan": CommandEntry("trinity_serve.cli.plan", "Compare layouts of a model on GPUs."),
    "check": CommandEntry("trinity_serve.cli.check", "Check a ray_config.yaml, key by key."),
    "doctor": CommandEntry("trinity_serve.cli.doctor", "Tell what this machine lacks."),
}


class LazyGroup(click.Group):
    """A group that imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None for a name that is not one."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = importlib.import_module(entry.module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from `COMMANDS` alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="trinity")
def trinity() -> None:
    """Serve AFMoE models (Trinity), with their experts as a service of their own."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 found wanting, 2 refused."""
    try:
        result = trinity.main(args=args, prog_name="trinity", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return EXIT_REFUSED
    except click.ClickException as error:
        return _refuse(error.format_message(), error.exit_code)
    except (TrinityError, OSError) as error:
        return _refuse(str(error), EXIT_REFUSED)
    except ImportError as error:
        return _refuse(f"{error}. trinity doctor tells what is missing.", EXIT_REFUSED)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return result if isinstance(result, int) else 0


def _refuse(message: str, exit_code: int) -> int:
    click.echo(f"trinity: {' '.join(message.split())}", err=True)
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
