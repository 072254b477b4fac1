"""Run by alembic, with the connection that the index hands it; each step is its own transaction."""

from alembic import context

from app.index import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transaction_per_migration=True,
    transactional_ddl=True,  # of SQLite too, since the index begins its transactions itself
)
with context.begin_transaction():
    context.run_migrations()
