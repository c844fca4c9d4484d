"""Runs the migrations on DATABASE_URL, or on the url that `app.storage.database.migrate` hands in."""

from alembic import context
from sqlalchemy import text

from app.settings import Settings
from app.storage.database import open_engine
from app.storage.tables import metadata

url = context.config.attributes.get("url") or Settings().database_url
if not url:
    raise SystemExit("Set DATABASE_URL, or run `segue migrate`, which also knows the embedded server.")

engine = open_engine(url, statement_timeout_seconds=0)
try:
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
        with context.begin_transaction():
            # Two processes that start together must not both migrate.
            connection.execute(text("select pg_advisory_xact_lock(hashtext('segue.migrations'))"))
            context.run_migrations()
finally:
    engine.dispose()
