"""What readers may ask: one SELECT that touches nothing but the store, judged by DuckDB's own parser."""

from __future__ import annotations

import functools

import duckdb

from kmon.store import sql

LONGEST = 1_000_000
"""Characters of a query."""
COMMENTS = 100
"""In a query: for nested ones DuckDB takes the square of the time, minutes for some thousands, and does not stop."""
TABLE_FUNCTIONS = frozenset({
    "duckdb_columns", "duckdb_databases", "duckdb_functions", "duckdb_indexes", "duckdb_schemas", "duckdb_tables",
    "duckdb_types", "duckdb_views", "generate_series", "histogram", "histogram_values", "json_each", "json_tree",
    "pragma_database_size", "pragma_show", "pragma_storage_info", "pragma_table_info", "pragma_version", "range",
    "repeat", "summary", "unnest",
})  # fmt: skip
"""The table functions that readers may call: no files, no side effects, and none that runs SQL from a text."""
VOLATILE = frozenset({"error", "gen_random_uuid", "random", "uuid", "uuidv4", "uuidv7"})
"""The functions that readers may call although DuckDB says that they are not functions of their arguments alone."""
LEAVE = "kmon_leave"
"""The function that Quack asks for leave."""
PRIVATE = frozenset({
    LEAVE, "current_setting", "getenv", "getvariable", "json_deserialize_sql", "json_serialize_plan",
    "json_serialize_sql",
})  # fmt: skip
"""The functions that readers may not call although they change nothing: they tell of the process, or plan SQL texts."""
_CATALOG = """
SELECT DISTINCT lower(function_name), function_type, coalesce(stability, '') = 'VOLATILE', lower(macro_definition)
FROM duckdb_functions()
"""
_VIEWS = "SELECT lower(view_name), lower(sql) FROM duckdb_views() WHERE internal"
_NAMED = """coalesce(list_distinct(regexp_extract_all(parsed, '"{key}":"((?:[^"\\\\]|\\\\.)*)"', 1)), [])"""
_PARSED = f"""
SELECT json_extract_string(parsed, '$.error') = 'false' AND json_array_length(parsed, '$.statements') = 1,
    {_NAMED.format(key="function_name")}, {_NAMED.format(key="table_name")}
FROM (SELECT json_serialize_sql($1::VARCHAR)::VARCHAR AS parsed)
"""


class Rule:
    """Decides by the functions that the database had when the rule was made."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        rows = connection.execute(_CATALOG).fetchall()
        self.forbidden = {name for name, kind, _, _ in rows if kind in ("table", "table_macro")} - TABLE_FUNCTIONS
        self.forbidden |= {name for name, _, volatile, _ in rows if volatile} - VOLATILE
        self.forbidden |= {name for name, *_ in rows if name.startswith("quack_")} | PRIVATE
        self.forbidden |= {
            name
            for name, _, _, definition in rows
            if name not in TABLE_FUNCTIONS and any(f"{f}(" in (definition or "") for f in self.forbidden)
        }
        views = connection.execute(_VIEWS).fetchall()
        self.hidden = {name for name, text in views if any(f"{f}(" in text for f in self.forbidden)}
        """The built-in views that show what a forbidden function would."""
        self._allows = functools.lru_cache(maxsize=256)(self._judge)

    def allows(self, connection: duckdb.DuckDBPyConnection, query: str) -> bool:
        """Whether `query` is one SELECT that calls nothing forbidden; duckdb.Error where that cannot be told."""
        return readable(query) and self._allows(connection, query)

    def _judge(self, connection: duckdb.DuckDBPyConnection, query: str) -> bool:
        found = connection.execute(_PARSED, [query]).fetchone()
        if not found or not found[0]:
            return False
        called, read = ({name.lower() for name in names} for names in found[1:])
        return self.forbidden.isdisjoint(called) and self.hidden.isdisjoint(read)


def readable(query: str) -> bool:
    """Whether DuckDB's parser is done with `query` in a moment."""
    return len(query) <= LONGEST and query.count("/*") <= COMMENTS


def bare(query: str) -> str:
    """`query` without the semicolons that may end it."""
    return query.rstrip("; \t\r\n")


def failing(sentence: str) -> str:
    """A SELECT that does nothing but fail with `sentence`."""
    return f"SELECT error({sql.text(sentence)})"
