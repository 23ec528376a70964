"""What people with bad intentions write into a rule: refused, or without any effect but a verdict."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.errors import ExpressionError
from pipelines.expressions.expression import compile_expression
from schemas.contract import ColumnType

COLUMNS = {"a": ColumnType.FLOAT64, "s": ColumnType.STRING, "f": ColumnType.BOOL}

HOSTILE = """
read_csv('/etc/passwd') = 'x'
read_text('/etc/passwd') = 'x'
read_blob('/etc/passwd') IS NULL
read_parquet('s3://x/y') IS NULL
glob('/*') = 'x'
getenv('HOME') = 'x'
current_setting('home_directory') = 'x'
duckdb_settings() IS NULL
query('select 1') = 1
query_table('x') IS NULL
json_execute_serialized_sql('x') IS NULL
sleep_ms(10000) IS NULL
pg_sleep(10) IS NULL
random() > 0.5
uuid() = 'x'
now() > '2026-01-01T00:00:00Z'
current_timestamp > '2026-01-01T00:00:00Z'
current_date IS NULL
current_user = 'root'
session_user = 'root'
version() = 'x'
write_log('x') IS NULL
repeat('x', 1000000000) = 'x'
lpad('x', 1000000000, 'y') = 'x'
rpad('x', 1000000000, 'y') = 'x'
format('{:1000000000}', 1) = 'x'
printf('%1000000000d', 1) = 'x'
levenshtein(s, s) > 1
list_transform([1], x -> x) IS NULL
range(1000000000) IS NULL
generate_series(1, 1000000000) IS NULL
unnest([1,2,3]) = 1
regexp_matches(s, '(a+)+$')
s SIMILAR TO 'a*'
s ~ '(a+)+$'
s GLOB '*'
s RLIKE 'a'
s ILIKE 'a%'
s LIKE ANY ('a', 'b')
s LIKE 'a' ESCAPE '\\'
load_extension('/tmp/x.so') IS NULL
readfile('/etc/passwd') IS NULL
writefile('/tmp/x', 'y') IS NULL
edit('x') = 'y'
zeroblob(1000000000) IS NULL
randomblob(1000000000) IS NULL
hex(s) = 'x'
quote(s) = 'x'
char(65) = 'A'
sqlite_version() = 'x'
last_insert_rowid() = 1
changes() = 1
typeof(a) = 'real'
a IN (SELECT 1)
a = (SELECT 1)
EXISTS (SELECT 1)
a > ALL (SELECT 1)
a = ANY (ARRAY[1, 2])
a > 1; DROP TABLE x
; DROP TABLE x
DROP TABLE x
DELETE FROM x
INSERT INTO x VALUES (1)
UPDATE x SET a = 1
ATTACH 'x.db' AS y
PRAGMA journal_mode
COPY x TO '/tmp/y'
EXPLAIN SELECT 1
SET x = 1
INSTALL httpfs
LOAD httpfs
CREATE TABLE x (a int)
VACUUM
REINDEX
BEGIN
a > 1 FROM x
a > 1 UNION SELECT 1
a > 1 LIMIT 1
a > 1 WHERE 1 = 1
a > 1 ORDER BY a
a > 1 GROUP BY a
a > 1, a > 2
a > 1 AS b
DISTINCT a > 1
*
a.*
COUNT(*) > 1
SUM(a) > 1
SUM(a) OVER () > 1
ROW_NUMBER() OVER (PARTITION BY a) > 1
a > 1 QUALIFY 1
CAST(s AS INTEGER) = 1
TRY_CAST(s AS INTEGER) = 1
s::int = 1
a::DECIMAL(38, 38) > 0
a % 2 = 0
a // 2 = 1
a ** 9999999 > 1
a ^ 2 > 1
pow(a, 99999) > 1
exp(a) > 1
round(a, 2147483647) = 1
a & 1 = 1
a | 1 = 1
a << 60 > 1
~a = 1
s || s = 'x'
group_concat(s) = 'x'
{'a': 1} IS NULL
[1, 2, 3] IS NULL
(1, 2) = (1, 2)
a[0] = 1
s[1:2] = 'a'
x.a > 1
main.x.a > 1
@a > 1
:a > 1
? > 1
$1 > 1
$$a$$ = s
%(a)s > 1
"a; drop" > 1
`a` > `b`
[a] > 1
#a > 1
a > 1 \\
x'41' = s
b'41' = s
N'x' = s
DATE '2026-01-01' > a
INTERVAL 1 DAY > a
TIMESTAMP 'now' IS NULL
EXTRACT(year FROM a) = 1
POSITION('x' IN s) > 0
SUBSTRING(s FROM 1 FOR 2) = 'x'
TRIM(LEADING 'x' FROM s) = 'x'
OVERLAY(s PLACING 'x' FROM 1) = 'y'
a COLLATE nocase = 1
s COLLATE "C" = 'x'
a AT TIME ZONE 'UTC' IS NULL
a IS DISTINCT FROM 1
a IS OF (int)
f XOR f
LAMBDA x: x
x -> x > 1
IF(f, 1, 2) = 1
IFF(f, 1, 2) = 1
GREATEST(a) = 1
ISNULL(a)
DECODE(a, 1, 2) = 2
__import__('os').system('id')
os.system('id')
pl.read_csv('x')
map_batches(a)
has('x'); 1
NULL
1
's'
TRUE AND NULL
/*+ hint */ a > 1
replace(s, '', 'x') = 'x'
replace(s, 'a', 'aaaaaaaaaaaaaaaaaaaaaaaaaaa') = 'x'
replace(s, s, s) = 'x'
substr(s, -1, 5) = 'x'
substr(s, 1, 99999999999) = 'x'
substr(s, a, 1) = 'x'
left(s, 1e300) = 'x'
right(s, 0.5) = 'x'
split_part(s, '', 1) = 'x'
split_part(s, ',', 0) = 'x'
occurrences(s, '') > 0
matches(s, '(a{1000}){1000}')
matches(s, '(?=a)b')
matches(s, '(a)\1')
matches(s, s)
matches(s, '(')
matches(s, '')
geo_in_polygon(a, a, '/etc/passwd')
geo_in_polygon(a, a, 'POLYGON((0 0, 1e308 0, 0 1))')
geo_in_polygon(a, a, 'POLYGON((0 0, 1 1))')
geo_in_polygon(a, a, 'POLYGON((0 0, 1 1, nan 2))')
geo_in_polygon(a, a, s)
geo_distance_m(a, a) > 1
list_contains(s, 'a')
list_get(s, 1) = 'a'
hour('now') = 1
hour(now()) = 1
hour('2026-01-01T00:00:00Z', '../../etc/passwd') = 1
hour('2026-01-01T00:00:00Z', '/etc/localtime') = 1
hour('2026-01-01T00:00:00Z', s) = 1
hour('2026-01-01T00:00:00Z', '+99:99') = 1
hour('2026-01-01T00:00:00Z', '') = 1
time_between('2026-01-01T00:00:00Z', '25:00', '26:00')
to_number(a) = 1
ct_like(s, 'a')
geo_inside(a, a, 'x') = 1
local(a, '0') IS NULL
epoch_us(a) > 1
s.a.b.c > 1
a.x = 1
""".strip().splitlines()


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(ExpressionError):
        compile_expression(text, COLUMNS)


def test_the_corpus_is_large_enough_to_mean_something() -> None:
    assert len(set(HOSTILE)) >= 180


@given(st.text(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_text_is_compiled_or_refused_and_nothing_else(text: str) -> None:
    try:
        compile_expression(text, COLUMNS)
    except ExpressionError as error:
        assert str(error)  # noqa: PT017 - both outcomes are fine


def test_words_of_the_language_in_any_order_are_compiled_or_refused_and_nothing_else() -> None:
    words = [
        "a",
        "s",
        "f",
        "AND",
        "OR",
        "NOT",
        "(",
        ")",
        "(",
        ")",
        "=",
        "<>",
        "<",
        ">",
        "+",
        "-",
        "*",
        "/",
        "IN",
        "BETWEEN",
        "LIKE",
        "IS",
        "NULL",
        "CASE",
        "WHEN",
        "THEN",
        "ELSE",
        "END",
        "1",
        "'x'",
        ",",
        "abs(",
        "least(",
        "TRUE",
        "--",
        "/*",
        "*/",
        ";",
        ".",
        "::",
        "[",
        "]",
        "{",
        "}",
        "@",
        "SELECT",
        "FROM",
    ]
    pick = random.Random(5)
    refused = 0
    for _ in range(3_000):
        text = " ".join(pick.choice(words) for _ in range(pick.randint(1, 25)))
        try:
            compile_expression(text, COLUMNS)
        except ExpressionError:
            refused += 1
    assert refused > 2_000
