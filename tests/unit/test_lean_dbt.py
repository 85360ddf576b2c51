import inspect
from datetime import date, datetime
from decimal import Decimal

import pytest
from dbt.adapters.events.types import NewConnection, SQLQuery
from dbt.artifacts.resources.v1.components import InjectedCTE
from dbt.clients.jinja import get_rendered
from dbt_common.behavior_flags import BehaviorFlagRendered
from dbt_common.clients import agate_helper, jinja
from dbt_common.events.base_types import EventLevel
from dbt_common.events.event_manager_client import get_event_manager
from dbt_common.events.functions import fire_event
from dbt_common.events.types import Note

from scripts import lean_dbt

ROWS = [
    [1, "1", "null", None, 1.5, Decimal("2.50"), date(2025, 5, 12), datetime(2025, 5, 12, 18, 10), True],
    [None, "x", "", None, None, None, None, None, None],
]
NAMES = [f"column_{number}" for number in range(len(ROWS[0]))]


@pytest.fixture(autouse=True)
def lean():
    lean_dbt.make_dbt_lean()


@pytest.fixture
def manager():
    """The manager of events, without what others had added to it."""
    manager = get_event_manager()
    before = manager.loggers, manager.callbacks
    manager.loggers, manager.callbacks = [], []
    yield manager
    manager.loggers, manager.callbacks = before


@pytest.mark.parametrize("text_columns", [[], {"column_1"}, {"column_1", "column_2"}])
@pytest.mark.parametrize("null_values", [("null", ""), ()])
def test_types_of_columns_are_guessed_as_before(text_columns, null_values):
    lean_tester = agate_helper.build_type_tester(text_columns, null_values)
    tester = lean_dbt._type_tester.__wrapped__(text_columns, null_values)
    kinds = [[type(each) for each in one.run(ROWS, NAMES)] for one in (lean_tester, tester)]
    assert kinds[0] == kinds[1]
    tables = [agate_helper.agate.Table(ROWS, NAMES, column_types=one) for one in (lean_tester, tester)]
    assert [list(row) for row in tables[0].rows] == [list(row) for row in tables[1].rows]
    assert agate_helper.build_type_tester(text_columns, null_values) is lean_tester


def test_the_source_of_a_behaviour_flag_is_who_asks_for_it():
    flag = BehaviorFlagRendered({"name": "any", "default": False, "docs_url": "somewhere"}, {})
    assert flag._behavior_change_event.flag_source == __name__ == lean_dbt._default_source()


@pytest.mark.parametrize("sql", ["select 1", "with a as (select 1) select * from a", "-- note\nselect 2"])
def test_ephemeral_models_are_put_before_the_text_as_before(sql):
    ctes = [
        InjectedCTE("b", " __dbt__cte__b as (select 3)"),
        InjectedCTE("c", " __dbt__cte__c as (select 4)"),
    ]
    expected = lean_dbt._inject(sql, ctes)
    assert expected != sql
    assert [lean_dbt.compilation.inject_ctes_into_sql(sql, ctes) for _ in range(2)] == [expected] * 2
    assert lean_dbt.compilation.inject_ctes_into_sql(sql, []) == sql
    assert lean_dbt.compilation.inject_ctes_into_sql(sql, ctes[:1]) == lean_dbt._inject(sql, ctes[:1])


def test_templates_are_compiled_once_for_each_kind_of_environment():
    text = "{% set n = [1, 2] %}{{ n | length }}{{ word }}"
    rendered = [get_rendered(text, {"word": word}, native=False) for word in ("a", "b")]
    assert rendered == ["2a", "2b"]
    for _ in range(2):
        assert get_rendered("{{ '[1, 2]' | as_native }}", {}, native=True) == [1, 2]
        assert get_rendered("{{ '[1, 2]' | as_native }}", {}, native=False) == "[1, 2]"
    assert (jinja.MacroFuzzEnvironment, text) in lean_dbt._codes


def test_a_template_that_is_no_template_fails_each_time():
    for _ in range(2):
        with pytest.raises(jinja.CompilationError):
            get_rendered("{% if %}", {})


def test_events_say_what_they_said():
    event = SQLQuery(conn_name="main", sql="select 1", node_info={"node_name": "one"})
    assert event.message() == "On main: select 1"
    assert event.to_dict()["node_info"]["node_name"] == "one"
    assert event.sql == "select 1"
    event.sql = "select 2"
    assert event.message() == "On main: select 2"


def test_events_that_nobody_hears_are_not_made(manager):
    heard = []
    manager.add_callback(heard.append)
    unheard, warning = NewConnection(conn_name="a", conn_type="b", node_info={}), Note(msg="look")
    fire_event(unheard)
    fire_event(warning, level=EventLevel.WARN)
    assert [(each.info.name, each.info.level, each.data.msg) for each in heard] == [("Note", "warn", "look")]
    assert "pb_msg" not in vars(unheard)
    assert unheard.conn_name == "a"


def test_frames_name_the_caller_beyond_this_module():
    assert lean_dbt._calling_module() == inspect.getmodule(inspect.currentframe()).__name__
