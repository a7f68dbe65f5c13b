"""What a checkpoint's `generation_config.json` sets for requests that say nothing themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.json_fields import JsonFields, load_json_object
from cluster.model_config import AfmoeConfig


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """Sampling defaults and special ids of one checkpoint.

    `temperature` 0 is greedy; `top_k` 0, `top_p` 1 and `min_p` 0 switch their filter off.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    @classmethod
    def load(cls, folder: Path, config: AfmoeConfig) -> GenerationDefaults:
        """Read the file in `folder`; ids that it does not give come from `config`.

        Base models ship without the file: then the filters are off. An explicit ``do_sample:
        false`` is greedy, whatever temperature stands beside it.

        Raises:
            ConfigError: the file is not a JSON object or a value is out of range.
        """
        path = folder / "generation_config.json"
        fields = JsonFields(load_json_object(path) if path.exists() else {}, str(path))
        greedy = fields.has("do_sample") and not fields.flag("do_sample")
        eos_token_ids, bos_token_id = (
            fields.token_ids("eos_token_id"),
            fields.token_id("bos_token_id"),
        )
        for key in ("eos_token_id", "bos_token_id", "pad_token_id"):
            _check_in_vocabulary(fields, key, config.vocab_size)
        return cls(
            temperature=0.0 if greedy else fields.number("temperature", 1.0, 0.0, 100.0),
            top_p=fields.number("top_p", 1.0, 1e-6, 1.0),
            top_k=fields.integer("top_k", minimum=0) if fields.has("top_k") else 0,
            min_p=fields.number("min_p", 0.0, 0.0, 1.0),
            eos_token_ids=eos_token_ids or config.eos_token_id or (),
            bos_token_id=config.bos_token_id if bos_token_id is None else bos_token_id,
            pad_token_id=fields.token_id("pad_token_id"),
        )


def _check_in_vocabulary(fields: JsonFields, key: str, vocab_size: int) -> None:
    for token in fields.token_ids(key) or ():
        if token >= vocab_size:
            raise fields.error(key, f"is {token}", f"ids below vocab_size {vocab_size}")
