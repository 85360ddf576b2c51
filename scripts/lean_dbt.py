"""What dbt does over and over for nobody, done once or not at all: a third of what `watch` took where little
is new (`python -m scripts.benchmarks.watch_latency profile` shows what takes it now).

Each replacement gives what the original gives, which the unit tests compare on the locked versions.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterable
from typing import Any

import agate  # type: ignore[import-untyped]
from dbt import compilation
from dbt.artifacts.resources.v1.components import InjectedCTE
from dbt_common import behavior_flags
from dbt_common.clients import agate_helper
from dbt_common.clients.jinja import MacroFuzzEnvironment
from dbt_common.events.base_types import BaseEvent, EventLevel
from dbt_common.events.event_manager import EventManager
from dbt_common.events.event_manager_client import ctx_set_event_manager

KEPT = 1024  # results of each function, far more than two projects have

RANKS = {level: rank for rank, level in enumerate(("debug", "test", "info", "warn", "error"))}


@functools.cache
def make_dbt_lean() -> None:
    """Replace, in this process, what is done over and over."""
    behavior_flags.BehaviorFlagRendered._default_source = staticmethod(_calling_module)  # type: ignore
    agate_helper.build_type_tester = _build_type_tester
    compilation.inject_ctes_into_sql = _inject_ctes_into_sql
    MacroFuzzEnvironment.compile = _compile_template  # type: ignore[method-assign, assignment]
    _put_off_events()
    ctx_set_event_manager(_HeardEvents())


class _HeardEvents(EventManager):
    """Passes on events that some logger takes. Callbacks get no others either: they hear of warnings and
    worse, which every logger takes."""

    def fire_event(
        self,
        e: BaseEvent,
        level: EventLevel | None = None,
        node: Any = None,
        force_warn_or_error_handling: bool = False,
    ) -> None:
        rank = RANKS[(level or e.level_tag()).value]
        least = min((RANKS[logger.level.value] for logger in self.loggers), default=RANKS["info"])
        if rank >= least or force_warn_or_error_handling:
            super().fire_event(e, level, node, force_warn_or_error_handling)


def _put_off_events() -> None:
    """Events are made by the thousand and most are dropped: have their messages made when they are read."""
    make = BaseEvent.__init__

    def note(self: BaseEvent, *arguments: Any, **fields: Any) -> None:
        vars(self)["_given"] = arguments, fields

    def message(self: BaseEvent) -> Any:
        arguments, fields = vars(self).pop("_given")
        make(self, *arguments, **fields)  # leaves the message where this one is looked up first
        return vars(self)["pb_msg"]

    put_off = functools.cached_property(message)
    put_off.__set_name__(BaseEvent, "pb_msg")
    BaseEvent.__init__ = note  # type: ignore[method-assign]
    BaseEvent.pb_msg = put_off


def _calling_module() -> str:
    """The module that asks for a behaviour flag: by the frames themselves, not by the source files of the
    whole stack."""
    frame = inspect.currentframe()
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if name not in (behavior_flags.__name__, __name__, None):
            return str(name)
        frame = frame.f_back
    return "Unknown"


def _build_type_tester(
    text_columns: Iterable[str], string_null_values: Iterable[str] | None = ("null", "")
) -> agate.TypeTester:
    """What guesses the types of a query's columns: it holds no state, and a calendar that is slow to make."""
    null_values = None if string_null_values is None else tuple(string_null_values)
    return _type_tester(frozenset(text_columns), null_values)


def _inject_ctes_into_sql(sql: str, ctes: list[InjectedCTE]) -> str:
    """A model's text with that of the ephemeral ones that it reads before it: it is parsed for that."""
    return _injected(sql, tuple((cte.id, cte.sql) for cte in ctes))


def _compile_template(
    self: MacroFuzzEnvironment,
    source: Any,
    name: str | None = None,
    filename: str | None = None,
    raw: bool = False,
    defer_init: bool = False,
) -> Any:
    """The code of a template, which depends on its text and on the kind of environment."""
    if isinstance(source, str) and (name, filename, raw, defer_init) == (None, None, False, False):
        key = type(self), source
        if key not in _codes:
            if len(_codes) >= KEPT:
                _codes.clear()
            _codes[key] = _compile(self, source)
        return _codes[key]
    return _compile(self, source, name, filename, raw, defer_init)  # type: ignore[call-overload]


_type_tester = functools.lru_cache(KEPT)(agate_helper.build_type_tester)
_default_source = behavior_flags.BehaviorFlagRendered._default_source
_inject = compilation.inject_ctes_into_sql
_compile = MacroFuzzEnvironment.compile
_codes: dict[tuple[type[MacroFuzzEnvironment], str], Any] = {}


@functools.lru_cache(KEPT)
def _injected(sql: str, ctes: tuple[tuple[str, str], ...]) -> str:
    return _inject(sql, [InjectedCTE(id=name, sql=text) for name, text in ctes])
