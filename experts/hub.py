"""Where a model's files are: a local folder, or the Hub's cache, filled file by file as needed."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

from cluster.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class _HubClient(Protocol):
    """`experts.hub_client`, which processes that read a folder do without."""

    def fetch_small_files(self, hub_id: str) -> Path:
        """See there."""

    def fetch_file(self, hub_id: str, name: str, revision: str) -> Path:
        """See there."""


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
        return cls(_hub_client().fetch_small_files(model), model)

    def weights(self, name: str) -> Path:
        """Return the path of weight file `name`, downloading it from the Hub when it is not here.

        Raises ModelDownloadError. A local file that does not exist is the caller's to report.
        """
        path = self.folder / name
        if path.exists() or self.hub_id is None:
            return path
        # The snapshot's own revision, so that weights never come from a later commit.
        return _hub_client().fetch_file(self.hub_id, name, self.folder.name)


def _hub_client() -> _HubClient:
    return cast(_HubClient, importlib.import_module("experts.hub_client"))
