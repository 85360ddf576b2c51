"""Users of the embedded PostgreSQL who have to give a password; everybody else is trusted there."""

from __future__ import annotations

from contextlib import closing
from typing import Any
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from ingestion.settings import Settings


def require_password(server: Settings, user: str) -> None:
    """Have the server ask this user for a password from now on."""
    rules = server.postgres_data_dir / "pg_hba.conf"
    with open(rules, "r+") as file:
        others = file.read()
        file.seek(0)
        file.write(f"local all {user} scram-sha-256\n{others}")
    execute(server.postgres_parameters(), "select pg_reload_conf()")


def make_login(server: Settings, user: str, password: str, rights: str = "") -> None:
    """A user of the server who may log in with the password alone, and no more than `rights` say."""
    statement = sql.SQL(f"create role {user} login {rights} password {{}}").format(sql.Literal(password))
    execute(server.postgres_parameters(), statement)
    require_password(server, user)


def login_url(server: Settings, user: str, password: str, database: str) -> str:
    """POSTGRES_URL of a user."""
    host = quote(str(server.postgres_socket_dir), safe="")
    return f"postgresql://{user}:{quote(password, safe='')}@{host}:5432/{database}"


def execute(parameters: dict[str, Any], *statements: Any) -> list[tuple[Any, ...]]:
    """Statements on PostgreSQL, each for itself; gives the rows of the last one."""
    with closing(psycopg2.connect(**parameters)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
