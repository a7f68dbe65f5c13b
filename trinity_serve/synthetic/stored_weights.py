"""The tensors that a synthetic checkpoint stores, quantised or not, each made when asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from cluster.model_config import AfmoeConfig
from cluster.types import ComputeDtype
from experts.quantised.layout import StoredLayout
from experts.quantised.scheme import Form, Role, Scheme, Stored
from experts.tensor_names import Shape, tensor_shapes
from trinity_serve.synthetic.quantise import quantise
from trinity_serve.synthetic.shard_files import TensorSpec
from trinity_serve.synthetic.weights import make_tensor, storage_dtype, tensor_chunks

_DTYPE_NAMES: dict[ComputeDtype, str] = {"float32": "F32", "bfloat16": "BF16"}


@dataclass(frozen=True, slots=True)
class _Part:
    """What a stored tensor is part of; `role` is None for the unused scale of activations."""

    name: str
    shape: Shape
    scheme: Scheme
    role: Role | None


class StoredWeights:
    """Specifications in order, and their data, made anew each time: any one can be made alone."""

    def __init__(
        self, config: AfmoeConfig, layout: StoredLayout, seed: int, scale_dtype: str
    ) -> None:
        self.specs: list[TensorSpec] = []
        self._config = config
        self._seed = seed
        self._scale_dtype = scale_dtype
        self._parts: dict[str, _Part] = {}
        for name, shape in tensor_shapes(config):
            scheme = layout.scheme_of(name)
            if scheme is None:
                dtype = _DTYPE_NAMES[storage_dtype(name, config.dtype)]
                self.specs.append(TensorSpec(name, shape, dtype))
            else:
                self.specs += self._specs_of(name, shape, scheme)

    def pieces(self, spec: TensorSpec) -> Iterator[Tensor]:
        """Yield the data as flat pieces in row-major order."""
        config, part = self._config, self._parts.get(spec.name)
        if part is None:
            yield from tensor_chunks(spec.name, spec.shape, config, self._seed, config.dtype)
        elif part.role is None:
            dtype = torch.bfloat16 if spec.dtype == "BF16" else torch.float32
            yield torch.ones(spec.shape, dtype=dtype)
        elif part.role is Role.SHAPE:
            yield torch.tensor(part.shape)
        else:
            weight_ND = make_tensor(part.name, part.shape, config, self._seed, config.dtype)
            yield quantise(weight_ND.float(), part.scheme, self._scale_dtype)[part.role]

    def _specs_of(self, name: str, shape: Shape, scheme: Scheme) -> Iterator[TensorSpec]:
        for role, stored in scheme.parts(name, shape).items():
            self._parts[stored.name] = _Part(name, shape, scheme, role)
            yield self._spec(stored, scheme.form, role)
        unused = scheme.unused_name(name)
        if unused is not None:
            self._parts[unused] = _Part(name, shape, scheme, None)
            dtype = self._scale_dtype if scheme.form is Form.FP8 else "F32"
            yield TensorSpec(unused, _scalar_shape(scheme.form), dtype)

    def _spec(self, stored: Stored, form: Form, role: Role) -> TensorSpec:
        shape, dtype = stored.shapes[0], stored.dtypes[0]
        if role is Role.SCALE and len(stored.dtypes) > 1:
            dtype = self._scale_dtype
        if role is Role.GLOBAL_SCALE:
            shape = _scalar_shape(form)
        return TensorSpec(stored.name, shape, dtype)


def _scalar_shape(form: Form) -> Shape:
    return () if form is Form.NVFP4_MODELOPT else (1,)
