"""`trinity plan`: what a model needs, what GPUs give, and which layout uses them best."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TypedDict, Unpack

import click

from cluster.errors import ConfigError
from cluster.model_config import AfmoeConfig
from experts.checkpoint import Checkpoint
from experts.quantised.scheme import Form
from trinity_serve.cli.measure import measure_here
from trinity_serve.planning import (
    Assumptions,
    Cluster,
    Comparison,
    LayoutKind,
    ModelSizes,
    WeightForm,
    Workload,
    compare,
    serve_file_text,
    table_lines,
)
from trinity_serve.planning.figures import DeviceFigures, find_machine, read_figures
from trinity_serve.planning.table import as_json
from trinity_serve.synthetic import PRESETS

_SIZE_UNITS = {"": 1, "K": 2**10, "M": 2**20}
_HOST = "cpu."
_FORMS = {
    Form.FP8: WeightForm.FP8,
    Form.FP8_DYNAMIC: WeightForm.FP8,
    Form.FP8_BLOCK: WeightForm.FP8,
    Form.W4A16: WeightForm.INT4,
    Form.NVFP4: WeightForm.NVFP4,
    Form.NVFP4_MODELOPT: WeightForm.NVFP4,
}


class PlanOptions(TypedDict):
    """What the command line gave."""

    model: str | None
    gpus: str | None
    nodes: int
    context: str
    rate: float | None
    streams: int | None
    experts: str | None
    rest: str | None
    kv: str
    arithmetic: str
    copies: int
    cpu_hosts: int | None
    machine: Path | None
    cpu_machine: Path | None
    changes: tuple[str, ...]
    layout: str | None
    out: Path | None
    as_json_: bool
    measure: bool


@click.command("plan")
@click.option("--model", help="A folder, a Hub id, or one of large, mini, nano.")
@click.option("--gpus", help="GPUs of one node, as 8xH200.")
@click.option("--nodes", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--context", default="8K", show_default=True, help="Mean tokens of a sequence.")
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Wanted tokens/s.")
@click.option("--streams", type=click.IntRange(min=1), help="Sequences at once.  [default: all]")
@click.option(
    "--experts",
    type=click.Choice([form.value for form in WeightForm]),
    help="How experts are stored.  [default: as the checkpoint]",
)
@click.option(
    "--rest",
    type=click.Choice([WeightForm.BF16.value, WeightForm.FP8.value]),
    help="How attention, dense layers and shared experts are.  [default: as the checkpoint]",
)
@click.option("--kv", type=click.Choice(["bf16", "fp8"]), default="bf16", show_default=True)
@click.option("--arithmetic", type=click.Choice(["bf16", "fp8"]), default="bf16")
@click.option("--copies", type=click.IntRange(min=1), default=1, help="Copies of each expert.")
@click.option("--cpu-hosts", type=click.IntRange(min=0), help="For experts.  [default: the nodes]")
@click.option("--machine", type=click.Path(path_type=Path), help="JSON with the GPU's figures.")
@click.option("--cpu-machine", type=click.Path(path_type=Path), help="The same of a CPU host.")
@click.option(
    "--set", "changes", multiple=True, metavar="KEY=VALUE", help="A figure or an assumption."
)
@click.option("--layout", type=click.Choice([kind.value for kind in LayoutKind]), help="For --out.")
@click.option("--out", type=click.Path(path_type=Path), help="Write its ray_config.yaml here.")
@click.option("--json", "as_json_", is_flag=True, help="Print everything as JSON.")
@click.option("--measure", is_flag=True, help="Print this machine's own figures as JSON, and end.")
def command(**options: Unpack[PlanOptions]) -> int:
    """Compare layouts of MODEL on GPUS by arithmetic; nothing is started or measured.

    KEY is a figure of the GPU (memory_bytes, memory_bytes_per_s, ...), of a CPU host (cpu.KEY), or
    an assumption (memory_share, imbalance, reserve_bytes, ...). Exit code 1 when the asked rate or
    streams are not reached.
    """
    if options["measure"]:
        click.echo(json.dumps(asdict(measure_here()), indent=2))
        return 0
    return _plan(options)


def _plan(asked: PlanOptions) -> int:
    model, gpus = asked["model"], asked["gpus"]
    if model is None or gpus is None:
        raise click.UsageError(f"Missing option '--{'gpus' if model else 'model'}'.")
    cluster, assumptions = machines_of(asked, gpus)
    workload = Workload(context_tokens(asked["context"]), asked["streams"], asked["rate"])
    kv_bytes = 1 if asked["kv"] == "fp8" else 2
    sizes = sizes_of(model, asked["experts"], asked["rest"], kv_bytes)
    _check_context(sizes.config, workload.context_tokens)
    found = compare(sizes, cluster, workload, assumptions, asked["copies"])
    if asked["as_json_"]:
        click.echo(json.dumps(as_json(model, found), indent=2))
    else:
        click.echo("\n".join(table_lines(model, found)))
    if asked["out"] is not None:
        _write(asked["out"], found, model, asked["layout"])
    return 0 if found.reaches(found.choice) else 1


def machines_of(asked: PlanOptions, gpus: str) -> tuple[Cluster, Assumptions]:
    """Return the machines and assumptions that the options name."""
    count, gpu = parse_gpus(gpus)
    host = find_machine("CPU", "plan")
    if asked["machine"] is not None:
        gpu = read_figures(asked["machine"], gpu)
    if asked["cpu_machine"] is not None:
        host = read_figures(asked["cpu_machine"], host)
    of_gpu, of_host, assumed = sort_changes(asked["changes"])
    hosts = asked["nodes"] if asked["cpu_hosts"] is None else asked["cpu_hosts"]
    cluster = Cluster(
        gpu.replaced(of_gpu, "--set"),
        count,
        asked["nodes"],
        host.replaced(of_host, "--set cpu."),
        hosts,
    )
    fp8 = asked["arithmetic"] == "fp8"
    return cluster, replace(with_assumptions(assumed), fp8_arithmetic=fp8)


def parse_gpus(text: str) -> tuple[int, DeviceFigures]:
    """Parse ``8xH200``. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)\s*x\s*([\w-]+)", text.strip())
    if match is None or int(match[1]) == 0:
        raise ConfigError("plan", "--gpus", f"is {text!r}", "COUNTxNAME, as 8xH200")
    return int(match[1]), find_machine(match[2], "--gpus")


def context_tokens(text: str) -> int:
    """Parse ``128K`` (131,072) or a plain number of tokens. Raises ConfigError."""
    match = re.fullmatch(r"(\d+)([KM]?)", text.strip().upper())
    tokens = int(match[1]) * _SIZE_UNITS[match[2]] if match else 0
    if tokens < 2:
        raise ConfigError("plan", "--context", f"is {text!r}", "2 or more tokens, as 8192 or 8K")
    return tokens


def sort_changes(
    changes: Sequence[str],
) -> tuple[dict[str, float], dict[str, float], dict[str, float]]:
    """Sort ``KEY=VALUE`` by what they change: GPU, CPU host, assumptions. Raises ConfigError."""
    of_gpu: dict[str, float] = {}
    of_host: dict[str, float] = {}
    assumed: dict[str, float] = {}
    names = {each.name for each in fields(Assumptions)}
    for change in changes:
        key, _, text = change.partition("=")
        try:
            value = float(text)
        except ValueError as error:
            raise ConfigError("--set", key, f"is {text!r}", "KEY=NUMBER") from error
        if key.startswith(_HOST):
            of_host[key.removeprefix(_HOST)] = value
        else:
            (assumed if key in names else of_gpu)[key] = value
    return of_gpu, of_host, assumed


def with_assumptions(changes: dict[str, float]) -> Assumptions:
    """Return the assumptions with some of them changed. Raises ConfigError."""
    changed: Assumptions = Assumptions()
    for key, value in changes.items():
        if not 0 <= value < float("inf") or (value == 0 and key.endswith("_share")):
            raise ConfigError("--set", key, f"is {value:g}", "a finite number, shares above 0")
        number = int(value) if key == "max_micro_batches" else value
        if key == "max_micro_batches" and number < 1:
            raise ConfigError("--set", key, f"is {value:g}", "1 or more")
        # replace() takes any keyword; `sort_changes` has looked at the names.
        changed = replace(changed, **{key: number})  # type: ignore[arg-type]
    return changed


def sizes_of(model: str, experts: str | None, rest: str | None, kv_bytes: int) -> ModelSizes:
    """Return the sizes of a preset or a checkpoint, in the asked forms or the checkpoint's own."""
    if model in PRESETS:
        config, stored = PRESETS[model], (WeightForm.BF16, WeightForm.BF16)
    else:
        checkpoint = Checkpoint.open(model)
        config, stored = checkpoint.config, stored_forms(checkpoint)
    return ModelSizes(
        config,
        WeightForm(experts) if experts else stored[0],
        WeightForm(rest) if rest else stored[1],
        kv_bytes,
    )


def stored_forms(checkpoint: Checkpoint) -> tuple[WeightForm, WeightForm]:
    """Return how a checkpoint stores experts and attention."""
    last = f"model.layers.{checkpoint.config.num_hidden_layers - 1}"
    names = (f"{last}.mlp.experts.0.gate_proj.weight", f"{last}.self_attn.q_proj.weight")
    schemes = (checkpoint.layout.scheme_of(name) for name in names)
    experts, rest = (_FORMS[scheme.form] if scheme else WeightForm.BF16 for scheme in schemes)
    return experts, rest


def _check_context(config: AfmoeConfig, tokens: int) -> None:
    limit = config.max_position_embeddings
    if tokens > limit:
        raise ConfigError("plan", "--context", f"is {tokens} tokens", f"at most {limit}")


def _write(path: Path, found: Comparison, model: str, layout: str | None) -> None:
    plan = found.choice if layout is None else found.plans.get(LayoutKind(layout))
    if plan is None:
        fitting = ", ".join(kind.value for kind in found.plans)
        raise ConfigError("plan", "--layout", f"{layout} does not fit", fitting)
    served = f"/models/trinity-{model}" if model in PRESETS else model
    path.write_text(serve_file_text(found, plan, served))
    click.echo(f"wrote {path}: {plan.layout.kind.value}", err=True)
