"""Who may call the admin routes: callers on this machine who can read a file of this server.

Until there are API keys. The file is this user's alone; a caller is told where it lies, and a
client only ever reads a file that looks like one (`read_token`), wherever it is told to look.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass
from pathlib import Path

from cluster.errors import AdminRefusedError

FILE_NAME = "trinity-admin-token"
FILE_HEADER = "X-Trinity-Token-File"
_TOKEN = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class AdminToken:
    """The token and the file that has it."""

    path: Path
    token: str

    @classmethod
    def open(cls, folder: Path) -> AdminToken:
        """Read the token file in `folder`, or make it. Raises `AdminRefusedError`."""
        path = folder / FILE_NAME
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return cls(path, read_token(path))
        with os.fdopen(file, "w") as writing:
            writing.write(secrets.token_hex(32))
        return cls(path, read_token(path))

    def matches(self, given: str) -> bool:
        """Whether `given` is the token; takes the same time for all that are not."""
        return hmac.compare_digest(given.encode(), self.token.encode())


def read_token(path: Path) -> str:
    """Return the token in `path`. Raises `AdminRefusedError` when it is no token file of ours."""
    if path.name != FILE_NAME:
        raise AdminRefusedError(f"{path} is not named {FILE_NAME}")
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(file) as reading:
            status = os.fstat(reading.fileno())
            text = reading.read(100)
    except (OSError, UnicodeDecodeError) as error:
        raise AdminRefusedError(f"{path} cannot be read ({error})") from error
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077:
        raise AdminRefusedError(f"{path} is not this user's alone")
    if _TOKEN.fullmatch(text) is None:
        raise AdminRefusedError(f"{path} holds no token")
    return text
