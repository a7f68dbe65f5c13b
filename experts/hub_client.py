"""Downloads from the Hub. Imported when a model is one of its ids: its client takes 5 MB."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from cluster.errors import ModelDownloadError

_SMALL_FILES = ("*.json", "*.jinja")
"""Configuration, tensor index, tokenizer, chat template, generation defaults; never weights."""

_HUB_FAILURES = (OSError, ValueError, EntryNotFoundError)
"""The Hub client's HTTP and offline errors are OSErrors, a malformed id a ValueError."""


def fetch_small_files(hub_id: str) -> Path:
    """Return the folder of a snapshot with all but the weights. Raises ModelDownloadError."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(_SMALL_FILES)))
    except _HUB_FAILURES as error:
        raise _download_error(hub_id, error) from error


def fetch_file(hub_id: str, name: str, revision: str) -> Path:
    """Return the path of one file of this revision. Raises ModelDownloadError."""
    try:
        return Path(hf_hub_download(hub_id, name, revision=revision))
    except _HUB_FAILURES as error:
        raise _download_error(hub_id, error) from error


def _download_error(hub_id: str, error: Exception) -> ModelDownloadError:
    if isinstance(error, RepositoryNotFoundError):
        advice = "check the name; for a private or gated model log in with `hf auth login`"
    elif isinstance(error, LocalEntryNotFoundError):
        advice = "connect to the network, or give the path of a local folder"
    else:
        advice = "try again, or download the model and give the path of its folder"
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ModelDownloadError(hub_id, reason[0], advice)
