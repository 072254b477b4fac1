"""The index of the jobs, in SQLite or PostgreSQL: what must be found fast, unique, or claimed by one server alone.

The jobs' directories are the truth (training.files.runs): what stands here is found in them too, but for who works on what. Every method
is one transaction, and blocks.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Float,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Update,
    and_,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)
from sqlalchemy import Index as TableIndex
from sqlalchemy.exc import IntegrityError

from app.database import Database
from training.contract import JobState

LOCAL = "local"  # the node of a SQLite index, which one server has to itself, whatever its host is called

metadata = MetaData()
_jobs = Table(
    "jobs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("place", BigInteger, nullable=False),
    Column("model", String(64)),
    Column("architecture", String(64)),
    Column("dataset", String(64)),
    Column("request_key", String(255), unique=True),
    Column("attempt", Integer, nullable=False),
    Column("node", String(255)),
    Column("lease_until", Float),
    TableIndex("jobs_queue", "state", "priority", "place"),
)


@dataclass(frozen=True)
class Entry:
    """A job, as the index knows it.

    state: that of its directory, but `running` from the moment a server claims it until that server is done with it.
    place: in the queue, among jobs of its priority; less is earlier.
    model: the name that it publishes under.
    key: what its client calls the request that made it.
    attempt: how often it was claimed.
    """

    id: str
    state: JobState
    priority: int
    place: int
    model: str | None
    architecture: str | None
    dataset: str | None
    key: str | None
    attempt: int


@dataclass(frozen=True)
class Claim:
    """A job that this server works on; another server's claim of the same job has another attempt."""

    id: str
    attempt: int


@dataclass(frozen=True)
class Filter:
    """Which jobs are meant: all, where nothing is said."""

    states: tuple[JobState, ...] = ()
    model: str | None = None
    architecture: str | None = None
    dataset: str | None = None

    def conditions(self) -> list[ColumnElement[bool]]:
        columns = {"model": self.model, "architecture": self.architecture, "dataset": self.dataset}
        wanted = [_jobs.c[name] == value for name, value in columns.items() if value is not None]
        return wanted + ([_jobs.c.state.in_(self.states)] if self.states else [])


ALL = Filter()


class Index:
    """One database. Servers that share a PostgreSQL are told apart by their node's name."""

    def __init__(self, url: str, node: str) -> None:
        """
        Args:
            url: as SQLAlchemy reads it, of SQLite or PostgreSQL.
            node: this server's name; of no effect in SQLite.

        Raises:
            SettingsError: no URL of such a database, or its driver is not installed.
        """
        self._database = Database(url)
        self.is_shared = self._database.is_shared
        self.node = node if self.is_shared else LOCAL
        self._reading, self._writing, self._now = self._database.reading, self._database.writing, self._database.now

    def __str__(self) -> str:
        return str(self._database)

    def open(self) -> None:
        """Bring the tables up to date; raises IndexUnavailable."""
        self._database.open()

    def close(self) -> None:
        self._database.close()

    def put_aside(self) -> Path:
        """Give the file of a SQLite database, and what belongs to it, another name; where it lies then."""
        return self._database.put_aside()

    # --- finding ---

    def states(self) -> dict[str, JobState]:
        """Every job's state, by id."""
        with self._reading() as connection:
            return {row.id: row.state for row in connection.execute(select(_jobs.c.id, _jobs.c.state))}

    def ids(self, wanted: Filter, limit: int, after: str | None = None) -> list[str]:
        """Newest first, from the one behind `after` on."""
        conditions = wanted.conditions() + ([] if after is None else [_jobs.c.id < after])
        with self._reading() as connection:
            found = connection.execute(select(_jobs.c.id).where(*conditions).order_by(_jobs.c.id.desc()).limit(limit))
            return list(found.scalars())

    def entry(self, id: str) -> Entry | None:
        with self._reading() as connection:
            row = connection.execute(select(_jobs).where(_jobs.c.id == id)).first()
            return None if row is None else _entry(row)

    def entries(self) -> list[Entry]:
        """All of them, oldest first."""
        with self._reading() as connection:
            return [_entry(row) for row in connection.execute(select(_jobs).order_by(_jobs.c.id))]

    def made_by(self, key: str) -> str | None:
        """The job that a request of this key has made."""
        with self._reading() as connection:
            return connection.execute(select(_jobs.c.id).where(_jobs.c.request_key == key)).scalar()

    def positions(self) -> dict[str, int]:
        """Of every job that is queued: how many go first, and itself."""
        queue = select(_jobs.c.id).where(_jobs.c.state == "queued").order_by(*_ORDER)
        with self._reading() as connection:
            return {id: place for place, id in enumerate(connection.execute(queue).scalars(), start=1)}

    def datasets_in_use(self) -> dict[str, list[str]]:
        """The jobs that are not at an end, by the data set of each."""
        wanted = _jobs.c.state.in_(("queued", "running", "paused"))
        found: dict[str, list[str]] = {}
        with self._reading() as connection:
            for row in connection.execute(select(_jobs.c.id, _jobs.c.dataset).where(wanted).order_by(_jobs.c.id)):
                found.setdefault(row.dataset, []).append(row.id)
        return found

    def next_place(self) -> int:
        """Behind all who are or were in the queue."""
        with self._reading() as connection:
            return 1 + (connection.execute(select(func.max(_jobs.c.place))).scalar() or 0)

    # --- changing ---

    def add(self, entry: Entry) -> str:
        """Put a job in; where its key is known already, nothing is put in.

        Returns:
            The job that is known by its key, or itself.
        """
        try:
            with self._writing() as connection:
                connection.execute(insert(_jobs).values(_values(entry)))
        except IntegrityError:  # of its id, where another server has found its directory already
            return entry.id if entry.key is None else self.made_by(entry.key) or entry.id
        return entry.id

    def add_all(self, entries: Sequence[Entry]) -> dict[str, str]:
        """Put many in at once: what `add` gives for each, by its id."""
        try:
            with self._writing() as connection:
                if entries:
                    connection.execute(insert(_jobs), [_values(entry) for entry in entries])
        except IntegrityError:  # one of them; which, is found one by one
            return {entry.id: self.add(entry) for entry in entries}
        return {entry.id: entry.id for entry in entries}

    def change(self, id: str, among: Sequence[JobState], state: JobState, place: int | None = None) -> bool:
        """Another state, where it is one of some before; whether it was."""
        values = {"state": state} | ({} if place is None else {"place": place})
        with self._writing() as connection:
            changed = connection.execute(update(_jobs).where(_jobs.c.id == id, _jobs.c.state.in_(among)).values(values))
            return changed.rowcount == 1

    def remove(self, id: str, among: Sequence[JobState]) -> bool:
        """Forget a job, where its state is one of some; whether it was."""
        with self._writing() as connection:
            return connection.execute(delete(_jobs).where(_jobs.c.id == id, _jobs.c.state.in_(among))).rowcount == 1

    def replace(self, entries: Iterable[Entry]) -> None:
        """Forget everything, and know these."""
        rows = [_values(entry) for entry in entries]
        with self._writing() as connection:
            connection.execute(delete(_jobs))
            if rows:
                connection.execute(insert(_jobs), rows)

    # --- working ---

    def claim(self, held: Collection[str], lease_seconds: float) -> Claim | None:
        """The job that is next for this server, as its own from now on: one that it had claimed before it died, or whose server has not
        renewed its lease, before the first in the queue.

        Args:
            held: what this server has claimed and works on.
        """
        mine = _jobs.c.node == self.node
        left = and_(_jobs.c.node != self.node, _jobs.c.lease_until < self._now)
        free = or_(_jobs.c.state == "queued", and_(_jobs.c.state == "running", or_(mine, left, _jobs.c.node.is_(None))))
        free = and_(_jobs.c.id.not_in(held), free)  # what was released a moment ago is still being put away
        # "running" sorts behind "queued": what somebody has begun goes on first
        first = select(_jobs.c.id).where(free).order_by(_jobs.c.state.desc(), *_ORDER).limit(1).with_for_update(skip_locked=True)
        claimed = update(_jobs).where(_jobs.c.id == first.scalar_subquery())
        with self._writing() as connection:
            row = connection.execute(
                claimed.values(
                    state="running", node=self.node, attempt=_jobs.c.attempt + 1, lease_until=self._now + lease_seconds
                ).returning(_jobs.c.id, _jobs.c.attempt)
            ).first()
            return None if row is None else Claim(row.id, row.attempt)

    def renew(self, claims: Iterable[Claim], lease_seconds: float) -> set[Claim]:
        """Hold on to claims; those that are still this server's."""
        kept = set()
        with self._writing() as connection:
            for claim in claims:
                if connection.execute(self._claimed(claim).values(lease_until=self._now + lease_seconds)).rowcount:
                    kept.add(claim)
        return kept

    def release(self, claim: Claim, state: JobState) -> bool:
        """Be done with a job, which is in this state now; False where another server has claimed it meanwhile."""
        with self._writing() as connection:
            return connection.execute(self._claimed(claim).values(state=state, node=None, lease_until=None)).rowcount == 1

    def _claimed(self, claim: Claim) -> Update:
        return update(_jobs).where(_jobs.c.id == claim.id, _jobs.c.attempt == claim.attempt, _jobs.c.node == self.node)


_ORDER = (_jobs.c.priority.desc(), _jobs.c.place, _jobs.c.id)


def _values(entry: Entry) -> dict[str, object]:
    values = dict(vars(entry))
    values["request_key"] = values.pop("key")
    return values


def _entry(row: Row[tuple[object, ...]]) -> Entry:
    return Entry(
        id=row.id,
        state=row.state,
        priority=row.priority,
        place=row.place,
        model=row.model,
        architecture=row.architecture,
        dataset=row.dataset,
        key=row.request_key,
        attempt=row.attempt,
    )
