"""The table of jobs."""

import sqlalchemy as sa
from alembic import op

revision, down_revision = "first", None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("priority", sa.Integer, nullable=False),
        sa.Column("place", sa.BigInteger, nullable=False),
        sa.Column("model", sa.String(64)),
        sa.Column("architecture", sa.String(64)),
        sa.Column("dataset", sa.String(64)),
        sa.Column("request_key", sa.String(255), unique=True),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("node", sa.String(255)),
        sa.Column("lease_until", sa.Float),
    )
    op.create_index("jobs_queue", "jobs", ["state", "priority", "place"])
