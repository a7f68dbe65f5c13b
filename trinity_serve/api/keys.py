"""API keys: records with hashes, and whose key a text is. Knows no HTTP.

A key is 256 random bits, so one SHA-256 guards it at rest. Files have one JSON record per line.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import ValidationError

from cluster.errors import ConfigError
from trinity_serve.config.security import ApiKeyRecord

KEYS_VARIABLE = "TRINITY_API_KEYS"
MIN_KEY_CHARS = 20
"""What is hashed fast must not be guessable."""
KEY_PREFIX = "sk-trinity-"
LOOK_AGAIN_S = 1.0
"""How old what is known of the key file may be."""


def new_key() -> str:
    """Return a new random key."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """Return what is kept of a key."""
    return hashlib.sha256(key.encode("utf8", "surrogateescape")).hexdigest()


def read_key_file(path: Path) -> tuple[ApiKeyRecord, ...]:
    """Return the records of a key file. Raises `ConfigError` naming file and line, never its text.

    Blank lines and lines that begin with ``#`` are skipped.
    """
    try:
        lines = path.read_text("utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise ConfigError(str(path), "the key file", str(reason), "a readable file") from error
    records: dict[str, ApiKeyRecord] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            record = ApiKeyRecord.model_validate_json(line)
        except ValidationError as error:
            first = error.errors(include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the line"
            problem = f"{where}: {first['msg']}"
            raise ConfigError(str(path), f"line {number}", problem, "a key's record") from None
        if record.name in records:
            problem = f"a second key is named {record.name}"
            raise ConfigError(str(path), f"line {number}", problem, "one key of each name")
        records[record.name] = record
    return tuple(records.values())


def records_of(text: str) -> tuple[ApiKeyRecord, ...]:
    """Return the records of keys as an environment variable has them: ``NAME=KEY,NAME:admin=KEY``.

    An admin key may do inference too. Raises `ConfigError`, in which no key stands.
    """
    found = []
    for number, item in enumerate(text.split(","), 1):
        name, _, key = item.strip().partition("=")
        name, _, scope = name.partition(":")
        where = f"key {number}"
        if len(key) < MIN_KEY_CHARS:
            problem = f"has {len(key)} characters"
            supported = f"NAME=KEY with {MIN_KEY_CHARS} or more random ones"
            raise ConfigError(KEYS_VARIABLE, where, problem, supported)
        scopes = ("inference", "admin") if scope == "admin" else (scope or "inference",)
        fields = {"name": name, "sha256": hash_of(key), "scopes": scopes}
        try:
            found.append(ApiKeyRecord.model_validate(fields))
        except ValidationError as error:
            problem = error.errors(include_input=False)[0]["msg"]
            raise ConfigError(KEYS_VARIABLE, where, problem, "NAME=KEY, NAME:admin=KEY") from None
    return tuple(found)


def append_key(path: Path, record: ApiKeyRecord) -> None:
    """Add a record to a key file, which is made for this user alone when it is not there.

    Raises `ConfigError` when the file has a key of that name or cannot be read or written.
    """
    if path.exists() and any(known.name == record.name for known in read_key_file(path)):
        problem = f"a key is named {record.name} already"
        raise ConfigError(str(path), "name", problem, "another name")
    line = record.model_dump_json(exclude_defaults=False, exclude_none=True) + "\n"
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(file, "wb") as writing:
            writing.write(line.encode())
    except OSError as error:
        raise ConfigError(str(path), "the key file", str(error), "a writable file") from error


class KeyRing:
    """Whose key a text is. Owned by one event loop.

    The file is read again when it has changed; one that cannot be read then keeps the keys of
    before (a half-written file must not lock everybody out), and `problem` says so.
    """

    def __init__(
        self,
        records: Iterable[ApiKeyRecord] = (),
        file: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.problem = ""
        self._fixed = tuple(records)
        self._file = file
        self._clock = clock
        self._looked_at_s = clock()
        self._stamp = _stamp(file)
        self._by_prefix = _indexed((*self._fixed, *(() if file is None else read_key_file(file))))

    def find(self, key: str) -> ApiKeyRecord | None:
        """Return the record of a key, or None.

        The look-up goes by the hash, which a caller cannot steer towards a known one, and the whole
        hashes are compared in constant time.
        """
        self._look_again()
        digest = hash_of(key)
        for record in self._by_prefix.get(digest[:8], ()):
            if hmac.compare_digest(record.sha256, digest):
                return record
        return None

    def _look_again(self) -> None:
        now_s = self._clock()
        if self._file is None or now_s - self._looked_at_s < LOOK_AGAIN_S:
            return
        self._looked_at_s = now_s
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        try:
            records = read_key_file(self._file)
        except ConfigError as error:
            self.problem = str(error)
            return
        self._stamp, self.problem = stamp, ""
        self._by_prefix = _indexed((*self._fixed, *records))


def _indexed(records: Iterable[ApiKeyRecord]) -> dict[str, tuple[ApiKeyRecord, ...]]:
    found: dict[str, tuple[ApiKeyRecord, ...]] = {}
    for record in records:
        found[record.sha256[:8]] = (*found.get(record.sha256[:8], ()), record)
    return found


def _stamp(file: Path | None) -> tuple[int, int, int]:
    """Return what changes when the file does; zeros when it is not there."""
    try:
        status = os.stat(file) if file is not None else None
    except OSError:
        status = None
    return (0, 0, 0) if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)
