"""Where a model's files are: a local folder, or the Hub's cache, filled file by file as needed."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from cluster.errors import CheckpointError, ModelDownloadError

_SMALL_FILES = ("*.json", "*.jinja")
"""Configuration, tensor index, tokenizer, chat template, generation defaults; never weights."""

_HUB_FAILURES = (OSError, ValueError, EntryNotFoundError)
"""The Hub client's HTTP and offline errors are OSErrors, a malformed id a ValueError."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's folder. With `hub_id`, weight files appear in it when asked for."""

    folder: Path
    hub_id: str | None = None

    @classmethod
    def locate(cls, model: str) -> ModelFiles:
        """Find a local folder, or fetch a Hub id's small files. Blocks for the download.

        Raises:
            CheckpointError: neither an existing folder nor the form of a Hub id.
            ModelDownloadError: the Hub cannot give the files.
        """
        folder = Path(model).expanduser()
        if folder.is_dir():
            return cls(folder)
        if _HUB_ID.fullmatch(model) is None or folder.exists():
            found = "a file" if folder.exists() else "nothing there"
            raise CheckpointError(model, "", "a checkpoint folder or a Hub id owner/name", found)
        try:
            snapshot = snapshot_download(model, allow_patterns=list(_SMALL_FILES))
        except _HUB_FAILURES as error:
            raise _download_error(model, error) from error
        return cls(Path(snapshot), model)

    def weights(self, name: str) -> Path:
        """Return the path of weight file `name`, downloading it from the Hub when it is not here.

        Raises ModelDownloadError. A local file that does not exist is the caller's to report.
        """
        path = self.folder / name
        if path.exists() or self.hub_id is None:
            return path
        try:
            # The snapshot's own revision, so that weights never come from a later commit.
            return Path(hf_hub_download(self.hub_id, name, revision=self.folder.name))
        except _HUB_FAILURES as error:
            raise _download_error(self.hub_id, error) from error


def _download_error(hub_id: str, error: Exception) -> ModelDownloadError:
    if isinstance(error, RepositoryNotFoundError):
        advice = "check the name; for a private or gated model log in with `hf auth login`"
    elif isinstance(error, LocalEntryNotFoundError):
        advice = "connect to the network, or give the path of a local folder"
    else:
        advice = "try again, or download the model and give the path of its folder"
    reason = str(error).strip().splitlines() or [type(error).__name__]
    return ModelDownloadError(hub_id, reason[0], advice)
