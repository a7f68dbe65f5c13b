"""What an ingress loads: the text side of the model."""

from __future__ import annotations

from trinity_serve.api.service import ModelService
from trinity_serve.config import ServeConfig
from trinity_serve.model.generation_config import GenerationDefaults
from trinity_serve.parts.model_files import locate_model, read_model_config


def open_service(config: ServeConfig) -> ModelService:
    """Return the text side of the model, for an ingress."""
    files = locate_model(config)
    model = read_model_config(files)
    return ModelService.from_folder(
        files.folder,
        name=config.model.public_name,
        defaults=GenerationDefaults.load(files.folder, model),
        max_model_len=config.model.max_model_len or model.max_position_embeddings,
        vocab_size=model.vocab_size,
        tool_parser=config.ingress.tool_parser,
        reasoning_parser=config.ingress.reasoning_parser,
    )
