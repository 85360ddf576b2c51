"""The naming law: one slug per source, everywhere, and a path that is the name.

Each law gives its breaches, none in the project; beneath, each is broken in a copy and must tell so.
"""

import re
import shutil

import pytest
import yaml

from ingestion.schemas import BRONZE
from ingestion.settings import PROJECT_ROOT

OWN_HISTORY = "pipeline"  # the one source that nothing fetches
LAYERS = ("staging", "intermediate", "marts", "landing")
NAMES = {
    "staging": r"stg_{slug}__[a-z_]+",
    "intermediate": r"int_{slug}__[a-z_]+ed",
    "marts": r"(fct|dim)_[a-z_]+",
    "landing": r"landing_{slug}__[a-z_]+",
    "models": r"(?!stg_|int_|fct_|dim_|landing_)[a-z_]+",
}
TIMESTAMPS = r"\w+_at(_warsaw)?|valid_from|valid_to"
UNITS = r"(\w+_)?(seconds|minutes|minutes_of_day|meters|kmh|pct|bytes|count)"
# degrees go without saying, and so does the unit of a mean
OTHER_NUMBERS = r"(\w+_)?(latitude|longitude|score)|(average|avg)_\w+|turnover|value"
TYPES = {"timestamp without time zone": "timestamp", "double precision": "double"}
# public names that are given from outside
CONTRACT = {
    ("bike_stations", "timestamp"),
    ("free_bikes", "timestamp"),
    ("stations_data_summary", "earliest_reading"),
    ("stations_data_summary", "latest_reading"),
}


def model_folders(root):
    """(layer, slug, folder) of each folder of models; the layer of exports is `models`."""
    folders = sorted([*root.glob("transform/models/*/*/"), *root.glob("exports/models/*/")])
    return [(folder.parent.name, folder.name, folder) for folder in folders if folder.is_dir()]


def read(file):
    return yaml.load(file.read_text(encoding="utf-8"), yaml.CSafeLoader)  # a tenth of the time


def described(root):
    """(layer, slug, folder, file, model) of each model in YAML."""
    return [
        (layer, slug, folder, file, model)
        for layer, slug, folder in model_folders(root)
        for file in sorted(folder.glob("*.yml"))
        for model in read(file).get("models", [])
    ]


def foreign_folders(root):
    found = {layer: set() for layer in (*LAYERS, "models")}
    for layer, slug, _ in model_folders(root):
        found.setdefault(layer, set()).add(slug)
    required = {layer: slugs for layer, slugs in found.items() if layer != "intermediate"}
    lacking = [f"{layer}/{slug}" for layer in required for slug in sorted(BRONZE.keys() - found[layer])]
    foreign = [f"{layer}/{slug}" for layer in found for slug in sorted(found[layer] - BRONZE.keys())]
    return lacking + foreign + sorted(found.keys() - {*LAYERS, "models"})


def foreign_modules(root):
    fetched = BRONZE.keys() - {OWN_HISTORY}
    return [
        f"ingestion/{slug}.py" for slug in sorted(fetched) if not (root / f"ingestion/{slug}.py").is_file()
    ]


def foreign_sources(root):
    """Sources of the lake that are not named after slug and bronze tables."""
    breaches = []
    for slug in BRONZE:
        sources = read(root / f"transform/models/staging/{slug}/_{slug}__sources.yml")["sources"]
        tables = {source["name"]: {table["name"] for table in source["tables"]} for source in sources}
        if tables != {slug: set(BRONZE[slug])}:
            breaches.append(slug)
    return breaches


def misnamed_models(root):
    return [
        path.stem
        for layer, slug, folder in model_folders(root)
        for path in sorted(folder.glob("*.sql"))
        if not re.fullmatch(NAMES[layer].format(slug=slug), path.stem)
    ]


def misnamed_yaml(root):
    """YAML files whose name does not say slug and content: the folder's models in one, sources, exposures,
    unit tests."""
    breaches = []
    for layer, slug, folder in model_folders(root):
        names = {
            "models": rf"_{slug}__{layer}\.yml",
            "sources": rf"_{slug}__sources\.yml",
            "exposures": rf"_{slug}__exposures\.yml",
            "unit_tests": rf"_{slug}__[a-z]+_unit_tests\.yml",
        }
        for file in sorted(folder.glob("*.y*ml")):
            kinds = read(file).keys() - {"version"}
            if not kinds or not all(re.fullmatch(names.get(kind, ""), file.name) for kind in kinds):
                breaches.append(file.name)
    return breaches


def unpaired_models(root):
    """Models with a file and no entry in YAML, or the other way round."""
    files = {(folder, path.stem) for _, _, folder in model_folders(root) for path in folder.glob("*.sql")}
    entries = {(folder, model["name"]) for _, _, folder, _, model in described(root)}
    return sorted(name for _, name in files ^ entries)


def undescribed(root):
    """Models that do not tell their grain, and columns without a description. A landing model may have the
    columns of the table that it copies, and none of its own then."""
    breaches = []
    for layer, _, _, _, model in described(root):
        description, columns = model.get("description", ""), model.get("columns", [])
        is_copy = layer == "landing" and "columns as in " in description
        if not description.startswith("One row per ") or is_copy == bool(columns):
            breaches.append(model["name"])
        breaches += [column["name"] for column in columns if not column.get("description")]
    return breaches


def misnamed_columns(root):
    """Columns whose name and type disagree, where the YAML tells the type."""
    return [
        f"{model['name']}.{column['name']}"
        for _, _, _, _, model in described(root)
        for column in model.get("columns", [])
        if "data_type" in column and (model["name"], column["name"]) not in CONTRACT
        if is_misnamed(column["name"], TYPES.get(column["data_type"], column["data_type"]))
    ]


def is_misnamed(name, data_type):
    def fits(pattern):
        return re.fullmatch(pattern, name) is not None

    return (
        fits(TIMESTAMPS) != (data_type == "timestamp")
        or fits(r"(is|has)_\w+") != (data_type == "boolean")
        or fits(r"dt|(\w+_)?date") != (data_type == "date")
        or (fits(UNITS) and data_type not in ("double", "integer", "bigint"))
        or (data_type == "double" and not fits(f"{UNITS}|{OTHER_NUMBERS}"))
    )


LAWS = [
    foreign_folders,
    foreign_modules,
    foreign_sources,
    misnamed_models,
    misnamed_yaml,
    unpaired_models,
    undescribed,
    misnamed_columns,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_the_law_holds(law):
    assert law(PROJECT_ROOT) == []


def move(old, new):
    return lambda root: (root / old).rename(root / new)


def replace(file, old, new):
    def change(root):
        text = (root / file).read_text()
        assert text.count(old) >= 1
        (root / file).write_text(text.replace(old, new, 1))

    return change


STAGING, MARTS = "transform/models/staging/wrm", "transform/models/marts/wrm"


@pytest.mark.parametrize(
    ("law", "change", "told"),
    [
        (foreign_folders, move(MARTS, "transform/models/marts/bikes"), ["marts/wrm", "marts/bikes"]),
        (
            foreign_folders,
            move("transform/models/marts", "transform/models/gold"),
            ["marts/pipeline", "marts/wrm", "gold"],
        ),
        (foreign_modules, move("ingestion/wrm.py", "ingestion/bikes.py"), ["ingestion/wrm.py"]),
        (foreign_sources, replace(f"{STAGING}/_wrm__sources.yml", "name: wrm", "name: bikes"), ["wrm"]),
        (
            foreign_sources,
            replace(f"{STAGING}/_wrm__sources.yml", "name: failures", "name: defects"),
            ["wrm"],
        ),
        (
            misnamed_models,
            move(f"{STAGING}/stg_wrm__failures.sql", f"{STAGING}/stg_failures.sql"),
            ["stg_failures"],
        ),
        (
            misnamed_models,
            move(f"{MARTS}/dim_bike_stations.sql", f"{MARTS}/bike_stations.sql"),
            ["bike_stations"],
        ),
        (misnamed_yaml, move(f"{MARTS}/_wrm__marts.yml", f"{MARTS}/_wrm__models.yml"), ["_wrm__models.yml"]),
        (misnamed_yaml, move(f"{MARTS}/_wrm__marts.yml", f"{MARTS}/wrm__marts.yml"), ["wrm__marts.yml"]),
        (
            unpaired_models,
            move(f"{MARTS}/dim_bike_stations.sql", f"{MARTS}/dim_docks.sql"),
            ["dim_bike_stations", "dim_docks"],
        ),
        (
            undescribed,
            replace(f"{MARTS}/_wrm__marts.yml", "One row per UTC day", "UTC days"),
            ["fct_daily_station_readings"],
        ),
        (
            undescribed,
            replace(f"{MARTS}/_wrm__marts.yml", "description: Distinct stations.", "description: ''"),
            ["stations_count"],
        ),
        (
            misnamed_columns,
            replace(f"{MARTS}/_wrm__marts.yml", "name: first_observed_at", "name: first_seen"),
            ["fct_daily_station_readings.first_seen"],
        ),
        (
            misnamed_columns,
            replace(f"{MARTS}/_wrm__marts.yml", "name: has_", "name: "),
            ["dim_bike_stations.vanished"],
        ),
        (
            misnamed_columns,
            replace(f"{MARTS}/_wrm__marts.yml", "name: gap_minutes", "name: gap"),
            ["fct_coverage_gaps.gap"],
        ),
    ],
)
def test_a_breach_is_told(tmp_path, law, change, told):
    for folder in ("ingestion", "transform/models", "exports/models"):
        shutil.copytree(
            PROJECT_ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    assert law(tmp_path) == []
    change(tmp_path)
    assert law(tmp_path) == told
