-- The embedded server's own database, made once at the first start.

-- name: database_exists
SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = %(database)s)

-- name: create_database
CREATE DATABASE {database}
