# Recipes of Bike Data Flow. `scripts/just <recipe>` makes the environment first; `just <recipe>` does as well.
# More than the dozen that the house style allows, in groups: each is one thing that people look for by name.

set dotenv-load
set positional-arguments

export PATH := justfile_directory() / ".venv/bin:" + env("PATH")
export CALLED_FROM := invocation_directory()

[private]
default:
    @just --list --unsorted

[private]
_environment:
    @scripts/just --sync-only

# Show the whole way on a simulated feed, embedded and kept apart in data/demo (--fresh starts over)
[group('main')]
[no-exit-message]
demo *arguments: _environment
    @python -m scripts.run_demo "$@"

# Run everything that must hold (arguments go to pytest)
[group('main')]
[no-exit-message]
test *arguments: _environment
    @python -m pytest --numprocesses 3 --dist worksteal "$@"

# Try to break every promise for most of an hour: kills, faults, hostile input (--points N, --seed S)
[group('main')]
[no-exit-message]
torture *arguments: _environment
    @python -m scripts.torture_pipeline "$@"

# Measure speed, memory and requests beside the limit and the usual ways; or some: bench cold_run (--days N, --write)
[group('main')]
[no-exit-message]
bench *arguments: _environment
    @python -m scripts.run_benchmark "$@"

# Keep lake and PostgreSQL up to date until Ctrl-C: poll the feed, look at WATCH_ARCHIVE, build and export
[group('main')]
[no-exit-message]
watch: _environment
    @python -m scripts.watch_lake

# Check all that is text, in seconds: style, types, SQL, YAML, names, links; or some: check types sql
[group('main')]
[no-exit-message]
check *tools: _environment
    @python -m scripts.check_style "$@"

# Take one live snapshot and bring it through every stage
[group('main')]
[no-exit-message]
run: _environment
    @python -m scripts.run_pipeline run

# Show on one screen how everything is doing; ends with status 1 when something is stale (--json, --markdown)
[group('main')]
[no-exit-message]
status *arguments: _environment
    @python -m scripts.show_status "$@"

# List the gaps; import an archive (folder or s3:// prefix), build and export; or rebuild days (--from, --to)
[group('main')]
[no-exit-message]
backfill *arguments: _environment
    @python -m scripts.run_pipeline backfill "$@"

# Fetch a source into bronze, once or every minute: ingest wrm --minutes 50
[group('stages')]
[no-exit-message]
ingest source='wrm' *options: _environment
    @python -m scripts.run_pipeline ingest "$@"

# Rebuild the stale days of the lake's models
[group('stages')]
[no-exit-message]
transform: _environment
    @python -m scripts.run_pipeline transform

# Rebuild days whether stale or not, and show what moved: rebuild 2025-05-12 2025-06-01..2025-06-30
[group('stages')]
[no-exit-message]
rebuild +days: _environment
    @python -m scripts.rebuild_days "$@"

# Fold bronze's many small objects into one per table and day, and remove dlt's old records of loads
[group('stages')]
[no-exit-message]
compact: _environment
    @python -m scripts.compact_bronze

# Bring what is new to PostgreSQL
[group('stages')]
[no-exit-message]
export: _environment
    @python -m scripts.run_pipeline export

# Build what is stale, then test and reconcile every day there is
[group('stages')]
[no-exit-message]
verify: _environment
    @python -m scripts.verify_lake

# Tell what a change does to every table and column: impact [BASE] (--json, --markdown); status 2 when it breaks
[group('change')]
[no-exit-message]
impact *arguments: _environment
    @python -m scripts.assess_impact "$@"

# Show where a column comes from, down to the raw payload: lineage bike_stations.bikes
[group('change')]
[no-exit-message]
lineage *arguments: _environment
    @python -m scripts.trace_lineage "$@"

# Show what a change does to rows, on made-up data: preview [BASE] (--json, --markdown, --examples N)
[group('change')]
[no-exit-message]
preview *arguments: _environment
    @python -m scripts.preview_change "$@"

# dbt in a project: dbt transform build, dbt exports docs generate, …
[group('tools')]
[no-exit-message]
dbt project *arguments: _environment
    @python -m scripts.run_dbt "$@"

# Pages that explain every table and column, with lineage, for a browser
[group('tools')]
[no-exit-message]
docs: _environment
    @python -m scripts.build_docs

# psql on the warehouse, embedded or not
[group('tools')]
[no-exit-message]
psql *arguments: _environment
    @python -m scripts.open_psql "$@"

# Versions, what differs from the lock, and settings that are a risk; ends with status 1 at a risk (--json)
[group('tools')]
[no-exit-message]
audit *arguments: _environment
    @python -m scripts.audit_environment "$@"

# DuckDB's shell on the lake, or one query: query "select …"
[group('tools')]
[no-exit-message]
query *arguments: _environment
    @python -m scripts.open_query "$@"

# One query's result for a spreadsheet, its text kept from being run: csv "select …" (--output FILE, --raw)
[group('tools')]
[no-exit-message]
csv *arguments: _environment
    @python -m scripts.export_csv "$@"

# Set up the lake's bucket and print the policies of collector, builder and reader (--dry-run, --policies-only)
[group('tools')]
[no-exit-message]
provision *arguments: _environment
    @python -m scripts.provision_bucket "$@"

# Keep the embedded PostgreSQL running until Ctrl-C
[group('tools')]
[no-exit-message]
postgres: _environment
    @python -m scripts.start_postgres

# Keep a local S3 server running until Ctrl-C and print the variables to use it
[group('tools')]
[no-exit-message]
s3: _environment
    @python -m scripts.start_s3

# Keep the simulated feed running until Ctrl-C (--speed, --seed, --port, …)
[group('tools')]
[no-exit-message]
feed *arguments: _environment
    @python -m scripts.simulate_feed "$@"
