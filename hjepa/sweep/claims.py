"""Who works on which trial of a sweep, and where its trials are stored.

A claim lasts as long as the process that made it, however that ends, because somebody who outlives the process keeps it: the
kernel, for all who share the sweep's folder; the PostgreSQL server, for all who share the database. So there is nothing to time:
a trial that runs and that nobody claims has lost its worker, at once and for certain.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hjepa.errors import Mistake

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

ASKING, WRITING, TRIALS = 0, 1, 2
"""What the numbers of a claim mean: to ask for a trial, to write in the journal; trial i is `TRIALS` + i."""
GONE = {"tcp_keepalives_idle": 15, "tcp_keepalives_interval": 5, "tcp_keepalives_count": 3}
"""Seconds, seconds, tries: a machine that is cut off loses its claims after half a minute."""


class Claims(Protocol):
    """Numbers, each of which one process at a time has."""

    def take(self, number: int) -> bool:
        """Whether it is ours now."""
        ...

    def wait(self, number: int) -> None:
        """It is ours when this returns."""
        ...

    def drop(self, number: int) -> None:
        """Somebody else may have it."""
        ...


@contextmanager
def claimed(claims: Claims, number: int) -> Iterator[None]:
    """Nobody else does meanwhile what the number stands for."""
    claims.wait(number)
    try:
        yield
    finally:
        claims.drop(number)


class Bytes:
    """Each number is a byte of one file, locked. Once a process; closing the file, or another handle on it, drops every claim."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab")  # noqa: SIM115 (open as long as the process works)

    def take(self, number: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)  # not flock: orphaned loader workers keep those
        except OSError:
            return False
        return True

    def wait(self, number: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_EX, 1, number)

    def drop(self, number: int) -> None:
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, number)


class Advisory:
    """Each number is an advisory lock of PostgreSQL, held by a connection that is used for nothing else."""

    def __init__(self, engine: Any, name: str) -> None:
        import sqlalchemy

        self._text, self._sweep = sqlalchemy.text, zlib.crc32(f"hjepa/{name}".encode()) - (1 << 31)
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        for setting, value in GONE.items():
            self._connection.execute(self._text(f"SET {setting} = {value}"))

    def take(self, number: int) -> bool:
        return bool(self._ask("pg_try_advisory_lock", number))

    def wait(self, number: int) -> None:
        self._ask("pg_advisory_lock", number)

    def drop(self, number: int) -> None:
        self._ask("pg_advisory_unlock", number)

    def _ask(self, function: str, number: int) -> Any:
        asked = self._text(f"SELECT {function}(:sweep, :number)")
        return self._connection.execute(asked, {"sweep": self._sweep, "number": number}).scalar()


def opened(folder: Path, url: str | None) -> tuple[BaseStorage, Claims]:
    """Where the trials of a sweep are stored, and who says who has which."""
    claims = Bytes(folder / ".claims")
    return (_file(folder / "optuna.journal", claims), claims) if url is None else _database(url, folder.name, claims)


def _file(path: Path, claims: Claims) -> BaseStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    try:
        return JournalStorage(JournalFileBackend(str(path), lock_obj=Mending(path, claims)))  # type: ignore[arg-type]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise Mistake(
            f"{path}: no journal of Optuna, or one that is damaged before its end ({type(error).__name__}: {error}); put back "
            "what was there, or move it away: without it the sweep begins anew"
        ) from None


def _database(url: str, name: str, here: Claims) -> tuple[BaseStorage, Claims]:
    from optuna.storages import RDBStorage
    from sqlalchemy.exc import ArgumentError, SQLAlchemyError

    scheme, separator, rest = url.partition("://")
    at = f"postgresql+psycopg://{rest}" if separator and scheme in ("postgresql", "postgres") else url
    try:
        storage = RDBStorage(at, engine_kwargs={"pool_pre_ping": True})
        return storage, Advisory(storage.engine, name) if storage.engine.name == "postgresql" else here
    except ArgumentError:
        raise Mistake("--storage: a URL is needed, as in postgresql://user@host/database") from None
    except ImportError as error:
        raise Mistake(f"--storage: {error} (for PostgreSQL: pip install 'hjepa[postgres]')") from None
    except SQLAlchemyError as error:
        said = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise Mistake(f"--storage: the database cannot be used: {said}") from None


class Mending:
    """The lock of Optuna's journal: whoever is about to write first cuts off what a killed writer has left of a line.

    Optuna reads past a torn last line, but writes right behind it, which makes a line in the middle that nobody can read.
    """

    def __init__(self, path: Path, claims: Claims) -> None:
        self.path, self.claims = path, claims

    def acquire(self) -> bool:
        """Waits for the lock."""
        self.claims.wait(WRITING)
        mend(self.path)
        return True

    def release(self) -> None:
        """Lets others write."""
        self.claims.drop(WRITING)


def mend(path: Path) -> None:
    """Cuts off a last line that has no end."""
    with path.open("rb+") as file:
        if not file.seek(0, os.SEEK_END):
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.truncate(path.read_bytes().rfind(b"\n") + 1)
