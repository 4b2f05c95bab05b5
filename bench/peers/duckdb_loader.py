"""The log with DuckDB: read_csv, unnest, split_part, group by; its own threads, Parquet out."""

from __future__ import annotations

from pathlib import Path

import duckdb

from peers import Loaded

_READ = (
    "read_csv('{path}', header=false, auto_detect=false, delim=',', quote='', escape='', "
    "columns={columns})"
)
_COMMON = "{'key': 'VARCHAR', 'n': 'UINTEGER', 'features': 'VARCHAR'}"
_SKELETON = (
    "{'sample_id': 'UBIGINT', 'click': 'UTINYINT', 'conversion': 'UTINYINT', 'key': 'VARCHAR', "
    "'n': 'UINTEGER', 'features': 'VARCHAR'}"
)


def load(skeleton: Path, common: Path, out: Path) -> Loaded:
    """Reads both files at once."""
    out.mkdir(parents=True)
    with duckdb.connect() as database:
        run = database.execute
        for name, path, columns in (
            ("common_rows", common, _COMMON),
            ("rows", skeleton, _SKELETON),
        ):
            read = _READ.format(path=path, columns=columns)
            run(f"""
                CREATE TEMP TABLE {name} AS
                SELECT row_number() OVER () - 1 AS row, * FROM {read}""")
            run(f"""
                CREATE TEMP TABLE {name}_features AS
                WITH parts AS (
                    SELECT row, string_split(
                        replace(unnest(string_split(features, chr(1))), chr(2), chr(3)), chr(3)
                    ) AS part
                    FROM {name})
                SELECT row::UINTEGER AS row, part[1] AS field, part[2]::UBIGINT AS id,
                       part[3]::FLOAT AS value
                FROM parts""")
            path = out / f"{name}_features.parquet"
            run(f"COPY {name}_features TO '{path}' (COMPRESSION uncompressed)")
        run("""
            CREATE TEMP TABLE labels AS
            SELECT sample_id, click, conversion, common_rows.row AS common_row
            FROM rows JOIN common_rows USING (key) ORDER BY rows.row""")
        run("""
            CREATE TEMP TABLE counts AS
            SELECT field, id, count(*) AS n FROM (
                SELECT field, id FROM rows_features UNION ALL
                SELECT field, id FROM common_rows_features)
            GROUP BY field, id""")
        for name in ("labels", "counts"):
            run(f"COPY {name} TO '{out / name}.parquet' (COMPRESSION uncompressed)")

        def one(query: str) -> tuple:
            found = run(query).fetchone()
            assert found is not None
            return found

        impressions, clicks, common_row_sum = one(
            "SELECT count(*), sum(click), sum(common_row) FROM labels"
        )
        sums = [
            one(f"SELECT count(*), sum(id), sum(value::DOUBLE) FROM {name}_features")
            for name in ("rows", "common_rows")
        ]
        return Loaded(
            impressions=impressions,
            clicks=int(clicks),
            common_rows=one("SELECT count(*) FROM common_rows")[0],
            occurrences=sum(s[0] for s in sums),
            distinct_ids=one("SELECT count(*) FROM counts")[0],
            id_sum=int(sum(s[1] for s in sums)),
            value_sum=float(sum(s[2] for s in sums)),
            common_row_sum=int(common_row_sum),
        )
