"""Every tensor of a checkpoint as its files have it: names, shapes, dtypes and bytes.

Needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cluster.errors import CheckpointError
from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype
from experts.quantised.description import Quantisation
from experts.quantised.scheme import Scheme, Stored
from experts.tensor_names import Shape, tensor_shapes

_FILE_DTYPES: dict[ComputeDtype, str] = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True)
class StoredLayout:
    """What `tensor_shapes` becomes on disk."""

    config: AfmoeConfig
    quantisation: Quantisation | None = None

    def scheme_of(self, name: str) -> Scheme | None:
        """Return how a tensor of the model is quantised, None when it is stored as it is."""
        return None if self.quantisation is None else self.quantisation.scheme_of(name)

    def parts(self, name: str, shape: Shape) -> Iterator[Stored]:
        """Yield what is stored for one tensor of the model."""
        scheme = self.scheme_of(name)
        if scheme is None:
            yield self.plain(name, shape)
        else:
            yield from scheme.parts(name, shape).values()

    def plain(self, name: str, shape: Shape) -> Stored:
        """Return a tensor that is stored as it is; only `expert_bias` has a choice of dtypes."""
        if name.endswith(".expert_bias"):
            return Stored(name, (shape,), tuple(_FILE_DTYPES.values()))
        return Stored(name, (shape,), (_FILE_DTYPES[self.config.dtype],))

    def names(self, source: str) -> tuple[list[str], list[str]]:
        """Return (what must be stored, what may be besides).

        Raises CheckpointError (about `source`) for a matrix that its form cannot hold.
        """
        required: list[str] = []
        optional: list[str] = []
        for name, shape in tensor_shapes(self.config):
            scheme = self.scheme_of(name)
            if scheme is None:
                required.append(name)
                continue
            if shape[-1] % scheme.column_multiple:
                expected = f"a width that is a multiple of {scheme.column_multiple} ({scheme})"
                raise CheckpointError(source, name, expected, str(shape[-1]))
            required += [part.name for part in scheme.parts(name, shape).values()]
            unused = scheme.unused_name(name)
            optional += [] if unused is None else [unused]
        return required, optional

    def stored_bytes(self, name: str, shape: Shape) -> int:
        """Return the bytes of one tensor of the model on disk, scales in their smallest dtype."""
        return sum(part.min_bytes for part in self.parts(name, shape))
