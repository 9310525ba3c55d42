"""Keys, quotas and use, in one SQLite file: right under concurrency, across processes and restarts.

A key is shown once, when it is made; the file holds its SHA-256 (a key has 256 random bits, so a slow hash would add
nothing). What a request may take is charged before it runs and settled after, so that no number of requests at once
can go over a quota. After a crash the charge stands: a quota is never exceeded, and at worst its window ends early.
"""

import contextlib
import hashlib
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from llava.errors import LlavaError
from llava.files import data_dir

_PREFIX = "llava-"
_SECONDS = {"minute": 60, "day": 86400}  # windows begin with UTC's minutes and days
_KEPT_DAYS = 400  # of use
_SCHEMA = """
CREATE TABLE IF NOT EXISTS keys (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, hash TEXT NOT NULL UNIQUE, hint TEXT NOT NULL,
    created REAL NOT NULL, revoked REAL,
    requests_minute INTEGER, requests_day INTEGER, tokens_minute INTEGER, tokens_day INTEGER,
    images_minute INTEGER, images_day INTEGER);
CREATE TABLE IF NOT EXISTS use (
    key INTEGER NOT NULL REFERENCES keys, kind TEXT NOT NULL, start INTEGER NOT NULL,
    requests INTEGER NOT NULL, tokens INTEGER NOT NULL, images INTEGER NOT NULL, PRIMARY KEY (key, kind, start));
"""


@dataclass(frozen=True)
class Amounts:
    """What is counted."""

    requests: int = 0
    tokens: int = 0  # of prompts, pictures' included, and of answers
    images: int = 0  # and videos

    def __neg__(self) -> "Amounts":
        return Amounts(-self.requests, -self.tokens, -self.images)


@dataclass(frozen=True)
class Quotas:
    """The most of each in a minute and a day (UTC); None is no limit."""

    requests_minute: int | None = None
    requests_day: int | None = None
    tokens_minute: int | None = None
    tokens_day: int | None = None
    images_minute: int | None = None
    images_day: int | None = None


@dataclass(frozen=True)
class Key:
    """A key as the file knows it. hint: how the key begins."""

    id: int
    name: str
    hint: str
    created: float
    revoked: float | None
    quotas: Quotas


@dataclass(frozen=True)
class Charge:
    """What a request was charged, and in which windows."""

    key: int
    starts: tuple[tuple[str, int], ...]


class QuotaError(Exception):
    """A quota would be exceeded. retry_after: seconds until its window ends."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


def default_keys() -> Path:
    """The user's own file of keys."""
    return data_dir() / "keys.sqlite"


class KeyStore:
    """The file. May be used by several threads and processes at once."""

    def __init__(self, path: Path) -> None:
        """Open the file; make it where it is missing, for its owner alone. Raises LlavaError."""
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if not path.exists():
                os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._file = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode=WAL")
            # A killed process loses nothing by this (a machine without power its last moments); no request waits.
            self._file.execute("PRAGMA synchronous=NORMAL")
            self._file.execute("PRAGMA foreign_keys=ON")
            self._file.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LlavaError(f"{path}: cannot be used for keys ({error})") from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def create(self, name: str, quotas: Quotas = Quotas()) -> str:
        """Make a key for a user; return it, for the only time. Raises LlavaError for a name that is taken."""
        key = _PREFIX + secrets.token_urlsafe(32)
        columns = ["name", "hash", "hint", "created", *(field.name for field in fields(Quotas))]
        values = [name, _hash(key), key[: len(_PREFIX) + 4], time.time(), *astuple(quotas)]
        if not name.strip() or len(name) > 100:
            raise LlavaError(f"a key's name has 1 to 100 characters, found {name!r}")
        try:
            with self._transaction():
                self._file.execute(f"INSERT INTO keys ({', '.join(columns)}) VALUES ({_marks(values)})", values)
        except sqlite3.IntegrityError:
            raise LlavaError(f"there is a key named '{name}' already; revoked ones keep their names too") from None
        return key

    def limit(self, name: str, quotas: Quotas) -> None:
        """Give a key other quotas. Raises LlavaError for a name that is not known."""
        assignments = ", ".join(f"{field.name} = ?" for field in fields(Quotas))
        self._change(f"UPDATE keys SET {assignments} WHERE name = ?", [*astuple(quotas), name], name)

    def revoke(self, name: str) -> None:
        """Let a key be refused from now on; what it used stays on record. Raises LlavaError."""
        self._change("UPDATE keys SET revoked = coalesce(revoked, ?) WHERE name = ?", [time.time(), name], name)

    def all(self) -> list[Key]:
        """All keys, the oldest first."""
        with self._lock:
            return [_key(row) for row in self._file.execute(f"SELECT {_COLUMNS} FROM keys ORDER BY id")]

    def find(self, key: str) -> Key | None:
        """The key that a client sent, unless it is unknown or revoked."""
        with self._lock:
            query = f"SELECT {_COLUMNS} FROM keys WHERE hash = ? AND revoked IS NULL"
            row = self._file.execute(query, [_hash(key)]).fetchone()
        return None if row is None else _key(row)

    def charge(self, key: Key, amounts: Amounts, now: float | None = None) -> Charge:
        """Count what a request takes, in its minute and its day. Raises QuotaError and counts nothing if it is over."""
        now = time.time() if now is None else now
        starts = tuple((kind, int(now // seconds) * seconds) for kind, seconds in _SECONDS.items())
        with self._transaction():
            for kind, start in starts:
                row = self._file.execute(
                    "SELECT requests, tokens, images FROM use WHERE key = ? AND kind = ? AND start = ?",
                    [key.id, kind, start],
                ).fetchone() or (0, 0, 0)
                for field, used, more in zip(fields(Amounts), row, astuple(amounts), strict=True):
                    most = getattr(key.quotas, f"{field.name}_{kind}")
                    if more and most is not None and used + more > most:
                        raise QuotaError(
                            f"this key may use {most} {field.name} a {kind}; {used} are used, {more} were asked for",
                            start + _SECONDS[kind] - now,
                        )
            charge = Charge(key.id, starts)
            self._add(charge, amounts)
        return charge

    def settle(self, charge: Charge, amounts: Amounts) -> None:
        """Correct a charge by what was taken more, or (negative) less."""
        with self._transaction():
            self._add(charge, amounts)

    def use(self, days: int) -> list[tuple[str, str, Amounts]]:
        """What each key used on each of the last days: (day, name, amounts), the last day first."""
        since = (int(time.time()) // 86400 - days + 1) * 86400
        query = (
            "SELECT strftime('%Y-%m-%d', start, 'unixepoch'), name, requests, tokens, images "
            "FROM use JOIN keys ON keys.id = use.key WHERE kind = 'day' AND start >= ? ORDER BY start DESC, name"
        )
        with self._lock:
            return [(day, name, Amounts(*counts)) for day, name, *counts in self._file.execute(query, [since])]

    def _add(self, charge: Charge, amounts: Amounts) -> None:
        for kind, start in charge.starts:
            self._file.execute(
                "INSERT INTO use VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "requests = requests + excluded.requests, tokens = tokens + excluded.tokens, "
                "images = images + excluded.images",
                [charge.key, kind, start, *astuple(amounts)],
            )
            kept = 3600 if kind == "minute" else _KEPT_DAYS * 86400
            self._file.execute(
                "DELETE FROM use WHERE key = ? AND kind = ? AND start < ?", [charge.key, kind, start - kept]
            )

    def _change(self, query: str, values: list[object], name: str) -> None:
        with self._transaction():
            changed = self._file.execute(query, values).rowcount
        if not changed:
            names = ", ".join(key.name for key in self.all()) or "none"
            raise LlavaError(f"no key named '{name}'; there are: {names}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        """Alone with the file, also among processes; nothing is kept if the block fails."""
        with self._lock:
            self._file.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._file.execute("ROLLBACK")
                raise
            self._file.execute("COMMIT")


_COLUMNS = ", ".join(["id, name, hint, created, revoked", *(field.name for field in fields(Quotas))])


def _key(row: tuple[Any, ...]) -> Key:
    number, name, hint, created, revoked, *quotas = row
    return Key(number, name, hint, created, revoked, Quotas(*quotas))


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _marks(values: list[object]) -> str:
    return ", ".join("?" * len(values))
