"""On paper: a year at one-minute cadence of one city, of 100 cities and of all public systems.

What one snapshot costs is measured, by `scale` on local files and by `watch_latency` (or `cold_run`) on S3;
all else is arithmetic on that. Assumptions and list prices stand here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from scripts.benchmarks.measurement import Results
from scripts.benchmarks.report import Record, Sheet, significant, told_bytes
from scripts.benchmarks.scale import KEPT, STAGES

DAYS, SNAPSHOTS_A_DAY = 365, 1440
# the order of magnitude of MobilityData's catalogue of public GBFS feeds: an assumption, as is that each is
# as large as the city that was measured
SYSTEMS = {"one city": 1, "100 cities": 100, "all public systems": 1000}
# dollars, list prices of AWS in eu-central-1 for S3 Standard, to be checked before they are relied on
PRICES = {
    "a gigabyte and month": 0.0245,
    "1,000 requests that write or list": 0.0054,
    "1,000 requests that read": 0.00043,
}
STORAGE, WRITES, READS = PRICES
WRITING = ("put_requests", "post_requests", "list_requests")
READING = ("get_requests", "head_requests")  # those that delete are free
# where requests of one snapshot are counted, the first that was measured; `watch` lists less than a cold run
COUNTED = (
    ("watch_latency", "round of watch", "S3 + 20 ms"),
    ("cold_run", "cold run", "2 days, S3"),
)
ROUND = ("watch_latency", "round of watch", "files")
# what one PostgreSQL server is assumed to hold before its tables want to be split
POSTGRES_BYTES = 1e12
# of the largest machine that is easily had; work on separate days of separate systems is assumed to use all
MACHINE_CORES = 64


@dataclass(frozen=True)
class Costs:
    """What one snapshot costs, as measured; None for what was not."""

    measured: str  # with how many lines
    cores: int  # of the machine that it was measured on
    lines: float
    text_bytes: float
    bronze_bytes: float
    model_bytes: float  # of silver and gold
    postgres_bytes: float
    objects: float  # that stay
    batch_seconds: float  # of that machine, through every stage
    writing_requests: float | None = None
    reading_requests: float | None = None
    requests_of: str | None = None  # which case counted them
    round_seconds: float | None = None  # of `watch`, on a day that is nearly full


def measured_costs(records: Mapping[str, Record]) -> Costs | None:
    """Costs from the records of scenarios by name, of the largest lake there is; None without `scale`."""
    if "scale" not in records:
        return None
    results = {name: record.results for name, record in records.items()}
    scale = results["scale"]
    lakes = [one for one in scale.observations if one.case == KEPT]
    lake = max(lakes, key=lambda one: one.figures["rows"])
    kept, snapshots = lake.figures, lake.figures["files"]
    seconds = sum(scale.median(stage, lake.way, "seconds") or 0 for stage in STAGES)
    counted = next((place for place in COUNTED if _median(results, place, "put_requests") is not None), None)
    return Costs(
        measured=lake.way,
        cores=records["scale"].machine["cores"],
        lines=kept["rows"] / snapshots,
        text_bytes=kept["text_bytes"] / snapshots,
        bronze_bytes=kept["bronze_bytes"] / snapshots,
        model_bytes=kept["model_bytes"] / snapshots,
        postgres_bytes=kept["postgres_bytes"] / snapshots,
        objects=(kept["bronze_objects"] + kept["model_objects"]) / snapshots,
        batch_seconds=seconds / snapshots,
        writing_requests=counted and _added(results, counted, WRITING),
        reading_requests=counted and _added(results, counted, READING),
        requests_of=counted and counted[1],
        round_seconds=_median(results, ROUND, "seconds"),
    )


def _median(results: Mapping[str, Results], place: tuple[str, str, str], figure: str) -> float | None:
    scenario, case, way = place
    return results[scenario].median(case, way, figure) if scenario in results else None


def _added(results: Mapping[str, Results], place: tuple[str, str, str], figures: tuple[str, ...]) -> float:
    return sum(_median(results, place, figure) or 0 for figure in figures)


@dataclass(frozen=True)
class Year:
    """A year of some systems, each snapshot of which costs the same."""

    costs: Costs
    systems: int

    @property
    def snapshots(self) -> int:
        return self.systems * DAYS * SNAPSHOTS_A_DAY

    def of(self, cost: float | None) -> float | None:
        """So much for each snapshot; None of what was not measured."""
        return None if cost is None else cost * self.snapshots

    @property
    def lake_bytes(self) -> float:
        return (self.costs.bronze_bytes + self.costs.model_bytes) * self.snapshots

    @property
    def storage_dollars(self) -> float:
        """A month's, at the end of the year."""
        return self.lake_bytes / 1e9 * PRICES[STORAGE]

    @property
    def request_dollars(self) -> float | None:
        """A month's."""
        if self.costs.writing_requests is None or self.costs.reading_requests is None:
            return None
        by_snapshot = (
            self.costs.writing_requests * PRICES[WRITES] + self.costs.reading_requests * PRICES[READS]
        )
        return by_snapshot / 1000 * self.snapshots / 12

    @property
    def batch_hours(self) -> float:
        return self.costs.batch_seconds * self.snapshots / 3600


def systems_held(costs: Costs) -> dict[str, float]:
    """How many systems are held at one-minute cadence, by what gives out then; the fewest first."""
    year = Year(costs, 1)
    held = {
        f"{costs.cores} cores that build in batches, as fast as snapshots come": 60 / costs.batch_seconds,
        f"PostgreSQL, with a year in one server of {told_bytes(POSTGRES_BYTES)} (assumed)": POSTGRES_BYTES
        / (costs.postgres_bytes * year.snapshots),
    }
    if costs.round_seconds is not None:
        held[f"{costs.cores} cores that run `watch`, one round after another, every mart new each minute"] = (
            60 / costs.round_seconds
        )
    return dict(sorted(held.items(), key=lambda item: item[1]))


def tell(costs: Costs) -> str:
    """The estimate in Markdown."""
    years = [Year(costs, systems) for systems in SYSTEMS.values()]
    return f"{_table(years).to_markdown()}\n{_tell_limits(costs)}\n{_tell_basis(costs)}"


def _table(years: list[Year]) -> Sheet:
    rows: list[tuple[str, list[str]]] = [
        ("snapshots", [f"{year.snapshots:,}" for year in years]),
        ("lines", [_number(year.of(year.costs.lines)) for year in years]),
        ("text, were it kept", [_bytes(year.of(year.costs.text_bytes)) for year in years]),
        ("bronze", [_bytes(year.of(year.costs.bronze_bytes)) for year in years]),
        ("silver and gold", [_bytes(year.of(year.costs.model_bytes)) for year in years]),
        ("PostgreSQL, were every day kept", [_bytes(year.of(year.costs.postgres_bytes)) for year in years]),
        ("objects in the lake", [_number(year.of(year.costs.objects)) for year in years]),
        ("requests that write or list", [_number(year.of(year.costs.writing_requests)) for year in years]),
        ("requests that read", [_number(year.of(year.costs.reading_requests)) for year in years]),
        ("storage, a month at the year's end", [_dollars(year.storage_dollars) for year in years]),
        ("requests, a month", [_dollars(year.request_dollars) for year in years]),
        (f"hours of {years[0].costs.cores} cores, in batches", [_number(year.batch_hours) for year in years]),
    ]
    headings = ["a year, a snapshot a minute", *(f"{name} ({count:,})" for name, count in SYSTEMS.items())]
    return Sheet(headings, [[name, *values] for name, values in rows], names=1)


def _number(value: float | None) -> str:
    return "not measured" if value is None else significant(value)


def _bytes(value: float | None) -> str:
    return "not measured" if value is None else told_bytes(value)


def _dollars(value: float | None) -> str:
    return "not measured" if value is None else f"${significant(value)}"


def _tell_limits(costs: Costs) -> str:
    """What gives out first, and where another engine takes over."""
    lines = [f"- {int(count):,} systems: {name}." for name, count in systems_held(costs).items()]
    lines[0] = f"{lines[0]} **This is the first bottleneck.**"
    day = costs.batch_seconds * SNAPSHOTS_A_DAY
    largest = 60 / costs.batch_seconds * MACHINE_CORES / costs.cores
    return (
        "What gives out as systems are added, and how many are held until then:\n\n"
        + "\n".join(lines)
        + f"\n\nThe unit of work is one system's day: {significant(day)} s of {costs.cores} cores through "
        "every stage, whatever the history. Days of other systems are separate work, so more cores and more "
        "machines come before another engine. Should one machine do it all, "
        f"{MACHINE_CORES} cores (assumed to be used to the full) would hold {int(largest):,} systems in "
        "batches; beyond that, or where one day outgrows one machine, the same Parquet and the same models "
        f"are for Spark.{_tell_money(Year(costs, 1))}\n"
    )


def _tell_money(year: Year) -> str:
    if year.request_dollars is None:
        return ""
    parts = {"storage": year.storage_dollars, "requests": year.request_dollars}
    dear = max(parts, key=parts.__getitem__)
    return f" Of the money, {significant(parts[dear] / sum(parts.values()) * 100)} % goes into {dear}."


def _tell_basis(costs: Costs) -> str:
    requests = f"; requests are those of a {costs.requests_of}" if costs.requests_of else ""
    prices = ", ".join(f"${price} for {what}" for what, price in PRICES.items())
    return (
        f"Measured on {costs.measured}, {significant(costs.lines)} lines a snapshot{requests}. Assumed: "
        f"{SYSTEMS['all public systems']:,} public systems (the order of magnitude of MobilityData's "
        "catalogue of GBFS feeds), each of that size. Prices are list prices of S3 Standard in eu-central-1, "
        f"to be checked: {prices}; deletions are free.\n"
    )
