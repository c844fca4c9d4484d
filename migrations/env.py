"""Runs the migrations on DATABASE_URL, or on the url that `app.storage.database.migrate` hands in."""

from alembic import context
from sqlalchemy import create_engine, pool, text
from sqlalchemy.engine import make_url

from app.settings import Settings
from app.storage.tables import metadata

url = context.config.attributes.get("url") or Settings().database_url
if not url:
    raise SystemExit("Set DATABASE_URL, or run `segue migrate`, which also knows the embedded server.")

engine = create_engine(make_url(url).set(drivername="postgresql+psycopg2"), poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        # Two processes that start together must not both migrate.
        connection.execute(text("select pg_advisory_xact_lock(hashtext('segue.migrations'))"))
        context.run_migrations()
