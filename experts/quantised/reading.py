"""Reads a quantised matrix's parts and checks what it reads."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from cluster.errors import CheckpointError
from experts.quantised.matrix import QuantisedMatrix
from experts.quantised.scheme import Role, Scheme, Stored
from experts.tensor_names import Shape


class StoredTensors(Protocol):
    """The part of `experts.checkpoint.Checkpoint` that is needed here."""

    def stored(self, wanted: Stored) -> Tensor:
        """Return one tensor as it is stored, checked against what it may look like."""
        ...

    def file_of(self, name: str) -> str:
        """Return the path of the file that holds a stored tensor, for errors."""
        ...


def read_matrix(source: StoredTensors, name: str, scheme: Scheme, shape: Shape) -> QuantisedMatrix:
    """Return matrix `name` of `shape` [N, D] in its stored form.

    Raises CheckpointError: a part is missing, of another shape or dtype, or a scale is not finite
    or not positive.
    """
    parts = scheme.parts(name, shape)
    read = {role: source.stored(part) for role, part in parts.items()}
    if Role.SHAPE in read:
        _check_shape(source, parts[Role.SHAPE].name, read[Role.SHAPE], shape)
    for role in (Role.SCALE, Role.GLOBAL_SCALE):
        if role in read:
            _check_scale(source, parts[role].name, read[role])
    return QuantisedMatrix(
        scheme, shape, read[Role.CODES], read[Role.SCALE], read.get(Role.GLOBAL_SCALE)
    )


def _check_shape(source: StoredTensors, name: str, stored: Tensor, shape: Shape) -> None:
    if tuple(stored.tolist()) != shape:
        raise CheckpointError(source.file_of(name), name, f"{list(shape)}", f"{stored.tolist()}")


def _check_scale(source: StoredTensors, name: str, scale: Tensor) -> None:
    values = scale.float()
    # E4M3 scales underflow to 0 where all of a group's weights are next to nothing.
    zero_is_fine = scale.dtype == torch.float8_e4m3fn
    good = torch.isfinite(values) & ((values >= 0) if zero_is_fine else (values > 0))
    if not good.all():
        found = f"{values[~good][0].item():g} ({int((~good).sum())} of {values.numel()} are not)"
        expected = "finite scales of 0 or more" if zero_is_fine else "finite scales above 0"
        raise CheckpointError(source.file_of(name), name, expected, found)
