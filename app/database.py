"""A database of SQLite or PostgreSQL: reached, brought up to date, and said to be away or damaged when it is."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import alembic.command
import alembic.config
from sqlalchemy import ColumnElement, Connection, Float, create_engine, event, literal_column, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import ConnectionPoolEntry

from app.errors import IndexDamaged, IndexUnavailable
from app.settings import SettingsError

BUSY_SECONDS = 5.0
RETRY_SECONDS = 5
_MIGRATIONS = Path(__file__).parent / "migrations"


# of PostgreSQL: nothing that hangs is waited for much longer than a lease allows
_SHARED: dict[str, object] = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,  # milliseconds, as those below
    "options": "-c statement_timeout=5000 -c lock_timeout=3000",
}


class Database:
    """One of them. Every method blocks, and raises IndexUnavailable where the database does not answer, IndexDamaged where it is."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as SQLAlchemy reads it.

        Raises:
            SettingsError: no URL of such a database, or its driver is not installed.
        """
        self._url = _url(url)
        self.is_shared = self._url.get_backend_name() != "sqlite"
        arguments = {"connect_args": _SHARED if self.is_shared else {"timeout": BUSY_SECONDS}}
        try:
            self._engine = create_engine(self._url, pool_pre_ping=self.is_shared, **arguments)
        except ImportError as error:
            raise SettingsError(f"{self} wants the package {error.name}: install ganserve[postgresql]") from error
        # in seconds; by one clock for all who share the database
        self.now: ColumnElement[float] = literal_column("extract(epoch from clock_timestamp())", Float)
        if not self.is_shared:
            self.now = literal_column("(julianday('now') - 2440587.5) * 86400.0", Float)
            event.listen(self._engine, "connect", _set_up_sqlite)
            event.listen(self._engine, "begin", _begin)

    def __str__(self) -> str:
        return self._url.render_as_string(hide_password=True)

    def open(self) -> None:
        """Bring the tables up to date."""
        with self._answering(), self._engine.connect() as connection:
            if not self.is_shared and (found := connection.execute(text("PRAGMA quick_check")).scalar()) != "ok":
                raise _damaged(str(found))
            connection.rollback()
            config = alembic.config.Config()
            config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "head")
            connection.commit()

    def close(self) -> None:
        self._engine.dispose()

    def put_aside(self) -> Path:
        """Give the file of a SQLite database, and what belongs to it, another name; where it lies then."""
        self.close()
        file = Path(self._url.database or "")
        aside = file.with_name(f"{file.name}.damaged-{datetime.now(UTC):%Y%m%d-%H%M%S-%f}")
        for suffix in ("-wal", "-shm", ""):
            if (path := file.with_name(file.name + suffix)).exists():
                path.rename(aside.with_name(aside.name + suffix))
        return aside

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that waits for nobody."""
        with self._answering(), self._engine.connect() as connection:
            yield connection.execution_options(reading=True)

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is durable after the block, or has not been."""
        with self._answering(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except IntegrityError:
            raise
        except (OperationalError, InterfaceError, PoolTimeoutError) as error:
            reason = str(getattr(error, "orig", error)).splitlines()[0]
            raise IndexUnavailable(f"the index of jobs does not answer: {reason}; ask again in a while", headers=_RETRY) from error
        except DatabaseError as error:
            raise _damaged(str(error.orig)) from error


_RETRY = {"Retry-After": str(RETRY_SECONDS)}


def _damaged(reason: str) -> IndexDamaged:
    remedy = "it is made anew when the server starts, or by `ganserve rebuild-index`"
    return IndexDamaged(f"the index of jobs is damaged: {reason.splitlines()[0]}; {remedy}", headers=_RETRY)


def _url(given: str) -> URL:
    try:
        url = make_url(given)
    except ArgumentError as error:
        raise SettingsError(f"the database {given!r} is no URL: give postgresql://USER:PASSWORD@HOST/NAME, or leave it out") from error
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise SettingsError(f"a database of {url.drivername} is not supported: give postgresql://..., or leave it out for SQLite")
    return url


def _set_up_sqlite(connection: sqlite3.Connection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # transactions begin where they are told to
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")  # what is committed outlives a power cut


def _begin(connection: Connection) -> None:
    """Who means to write takes the lock at once: a reader cannot become a writer while another one is."""
    connection.exec_driver_sql("BEGIN" if connection.get_execution_options().get("reading") else "BEGIN IMMEDIATE")
