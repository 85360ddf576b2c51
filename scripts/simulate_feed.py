"""A loopback server that speaks the WRM feed, for the demo and the tests. All of it is made up.

    python -m scripts.simulate_feed --port 8080 --speed 60
    python -m scripts.simulate_feed --write-archive FOLDER --days 2 --cadence 10

About 235 stations and a few hundred free bikes with plausible daily rhythms, the same for the same seed.
`POST /misbehave?kind=KIND&count=N` makes the next N answers go wrong; kinds: see `MISBEHAVIOURS`.
"""

from __future__ import annotations

import argparse
import math
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b, sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit
from zoneinfo import ZoneInfo

import ftfy.bad_codecs

from scripts.foreground import wait_until_stopped

HEADER = (
    "#id,timestamp|gmt_local_diff_sec|gmt_servertime_diff_sec,name,lat,lon,bikes,spaces,installed,locked,"
    "temporary,total_docks,givesbonus_acceptspedelecs_fbbattlevel,pedelecs"
)
FAILURES_CSV = (
    "Numer zgłoszenia,Typ,Nr roweru,Nr stacji,Opis,Data zgłoszenia,Data usunięcia,Status,Dzielnica\n"
    "2025/0411,rower,602632,,Przebita dętka,2025-05-11 08:15,2025-05-12 14:00,usunięta,Krzyki\n"
    '2025/0412,stacja,,15014,"Terminal nie działa, ekran ""zamarzł"".\nBez zmian",2025-05-12,,w trakcie,\n'
    "2025/0413,rower,600043,15002,Luźny łańcuch,2025-05-12 19:40,,nowa,Stare Miasto\n"
)
DEPOT = (52.28, 21.01)
ftfy.bad_codecs.ok()
_WARSAW = ZoneInfo("Europe/Warsaw")
_KINDS_OF_PLACE = ("Plac", "Skwer", "Rondo", "Aleja", "Most", "Park", "Dworzec", "Osiedle")
_NAMES = (
    *("Jaśminowa", "Świerkowa", "Żabia", "Księżycowa", "Łabędzia", "Bursztynowa", "Źródlana", "Miodowa"),
    *("Kasztanowa", "Ćwiklińska", "Różana", "Dębowa", "Słoneczna", "Wichrowa", "Piaskowa", "Gęsia"),
    *("Śliwkowa", "Zielona", "Kamienna", "Orla", "Żurawia", "Mglista"),
)


@dataclass(frozen=True)
class Station:
    """A made-up docking station; `rush` is +1 where bikes gather by day (offices), −1 by night (homes)."""

    id: int
    name: str
    latitude: float
    longitude: float
    docks: int
    rush: float


class City:
    """A made-up city whose every snapshot is a function of the seed and the moment.

    A lively one has stations that run empty or full, and free bikes that are away, as riders take them; in
    the other, every snapshot has a line for every station and bike.
    """

    def __init__(
        self, seed: int = 7, stations: int = 235, free_bikes: int = 115, lively: bool = False
    ) -> None:
        self.seed = seed
        self.lively = lively
        draw = random.Random(seed)
        self.stations = [self._station(draw, number) for number in range(stations)]
        self.free_bike_ids = [600001 + 7 * number for number in range(free_bikes)]

    @staticmethod
    def _station(draw: random.Random, number: int) -> Station:
        first, second = draw.sample(_NAMES, 2)
        name = (
            f"{draw.choice(_KINDS_OF_PLACE)} {first}, {draw.choice(('północ', 'południe'))}"
            if number % 5 == 0
            else f"{first} / {second}"
        )
        return Station(
            id=15001 + number,
            name=f"{name} {number + 1}",
            latitude=round(draw.gauss(51.107, 0.02), 6),
            longitude=round(draw.gauss(17.035, 0.03), 6),
            docks=draw.choice((10, 12, 14, 16, 20, 26)),
            rush=draw.uniform(-1, 1),
        )

    def snapshot(self, observed_at: datetime, rhythm_at: datetime | None = None) -> str:
        """The feed's text as of `observed_at`; its daily rhythm stands where it is at `rhythm_at`."""
        rhythm_at = rhythm_at or observed_at
        offsets = self._offsets(observed_at)
        start = observed_at.timestamp() + 0.947606
        rows = [HEADER]
        places: list[tuple[int | str, str]] = [
            self._station_fields(station, rhythm_at) for station in self.stations
        ]
        places += [
            self._free_bike_fields(bike, rhythm_at)
            for bike in self.free_bike_ids
            if not self._is_ridden(bike, rhythm_at)
        ]
        for number, (identity, fields) in enumerate(places):
            rows.append(f"{identity},{start + number * 0.000131:.6f}|{offsets},{fields}")
        return "\n".join(rows) + "\n"

    @staticmethod
    def _offsets(moment: datetime) -> str:
        offset = _WARSAW.utcoffset(moment.astimezone(_WARSAW).replace(tzinfo=None)) or timedelta()
        return f"-{int(offset.total_seconds())}|-3600"

    def _station_fields(self, station: Station, moment: datetime) -> tuple[int, str]:
        hour = moment.hour + moment.minute / 60
        swing = 0.6 if self.lively else 0.3
        rhythm = 0.5 + swing * station.rush * math.sin((hour - 8) / 24 * 2 * math.pi)
        share = rhythm + 0.25 * (self._wander(station.id, moment) - 0.5)
        bikes = max(0, round(share * station.docks))
        name = f'"{station.name}"' if "," in station.name else station.name
        return station.id, (
            f"{name},{station.latitude},{station.longitude},{bikes},{max(0, station.docks - bikes)},"
            f"true,false,false,{station.docks},false,{bikes // 6}"
        )

    def _is_ridden(self, bike: int, moment: datetime) -> bool:
        """Whether a bike of a lively city is on its way: up to 40 minutes of each six hours."""
        stay, seconds = self._stay(bike, moment)
        return self.lively and seconds < 2400 * random.Random(f"{self.seed}/{bike}/{stay}/ride").random()

    def _stay(self, bike: int, moment: datetime) -> tuple[int, int]:
        """Number of the six-hour stay that a bike is at, and the seconds since it began."""
        offset = bike * 997 % 21600 if self.lively else 0
        return divmod(int(moment.timestamp()) + offset, 21600)

    def _free_bike_fields(self, bike: int, moment: datetime) -> tuple[str, str]:
        stay, _ = self._stay(bike, moment)
        draw = random.Random(f"{self.seed}/{bike}/{stay}")
        at_depot = draw.random() < 0.02
        latitude = DEPOT[0] if at_depot else round(draw.gauss(51.107, 0.03), 6)
        longitude = DEPOT[1] if at_depot else round(draw.gauss(17.035, 0.04), 6)
        battery = draw.choice((-1, -1, *range(10, 100, 5)))
        return f"fb{bike}", (f"BIKE {bike},{latitude},{longitude},1,0,true,false,true,1,{battery},0")

    def _wander(self, station: int, moment: datetime) -> float:
        """Smooth noise between 0 and 1: drawn anew every ten minutes, straight in between."""
        step, part = divmod(moment.timestamp(), 600)
        before, after = (_noise(self.seed, station, int(step) + i) for i in (0, 1))
        return before + (after - before) * part / 600


@lru_cache(maxsize=4096)
def _noise(seed: int, station: int, step: int) -> float:
    digest = blake2b(f"{seed}/{station}/{step}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") / 2**32


def break_encoding(text: str) -> str:
    """UTF-8 read as cp1250, which is how broken names arrive (the codec is ftfy's and loses no byte)."""
    return text.encode().decode("sloppy-windows-1250")


def write_archive(
    folder: Path, days: list[date], cadence: timedelta, city: City, with_damage: bool = True
) -> int:
    """Write a raw archive below `folder/dt=…/`, one file per `cadence`; files that stand there stay as they
    are. With damage, a few files hold what real feeds hold: broken names, torn lines, a repeated snapshot.

    Gives the number of files written.
    """
    written = 0
    for day in days:
        target = folder / f"dt={day.isoformat()}"
        target.mkdir(parents=True, exist_ok=True)
        moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
        for number in range(int(timedelta(days=1) / cadence)):
            observed_at = moment + number * cadence
            for name, text in _archive_files(city, observed_at, with_damage and number % 48 == 7):
                if not (target / name).exists():
                    (target / name).write_text(text, encoding="utf-8")
                    written += 1
    return written


def _archive_files(city: City, observed_at: datetime, damaged: bool) -> Iterator[tuple[str, str]]:
    text = city.snapshot(observed_at)
    if damaged:
        yield (
            f"content_{observed_at:%Y-%m-%d_%H-%M-%S}.txt",
            text + "\n",
        )  # the same lines once more
        lines = text.split("\n")
        lines[20] = break_encoding(lines[20])
        lines[30] = lines[30][: len(lines[30]) // 2]
        lines[40] = lines[40].replace("true", "maybe")
        text = "\n".join(lines)
    yield f"wrm_stations_{observed_at:%Y-%m-%d_%H-%M-%S}.txt", text


@dataclass(frozen=True)
class Answer:
    """What the server sends; `stall_seconds` before the body, `cut_at` bytes of it and no more."""

    body: bytes
    status: int = 200
    content_type: str = "text/csv; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    stall_seconds: float = 0
    cut_at: int | None = None


def _swap_columns(text: str) -> str:
    """The name and the number of docks change places, header and all."""
    rows = [line.split(",") for line in text.splitlines() if '"' not in line]
    return "\n".join(",".join([*row[:2], row[10], *row[3:10], row[2], *row[11:]]) for row in rows) + "\n"


def _drop_column(text: str) -> str:
    rows = [line.split(",") for line in text.splitlines() if '"' not in line]
    return "\n".join(",".join(row[:5] + row[6:]) for row in rows) + "\n"


MISBEHAVIOURS: dict[str, Callable[[str], Answer]] = {
    "500": lambda text: Answer(b"Internal error", 500, "text/plain"),
    "507": lambda text: Answer(b"Full", 507, "text/plain"),
    "503": lambda text: Answer(b"Busy", 503, "text/plain", (("Retry-After", "1"),)),
    "429": lambda text: Answer(b"Slow down", 429, "text/plain", (("Retry-After", "1"),)),
    "404": lambda text: Answer(b"Gone", 404, "text/plain"),
    "timeout": lambda text: Answer(text.encode(), stall_seconds=30),
    "truncated": lambda text: Answer(text.encode(), cut_at=len(text.encode()) // 2),
    "html": lambda text: Answer(b"<!DOCTYPE html><html><body>Maintenance</body></html>", 200, "text/html"),
    "csv_as_html": lambda text: Answer(text.encode(), content_type="text/html"),
    "mojibake": lambda text: Answer(break_encoding(text).encode()),
    "shifted_columns": lambda text: Answer(_swap_columns(text).encode()),
    "missing_column": lambda text: Answer(_drop_column(text).encode()),
    "empty": lambda text: Answer(b""),
    "wrong_encoding": lambda text: Answer(text.encode("cp1250", "replace")),
    "large": lambda text: Answer(b"x" * (50 * 1024 * 1024)),
}


class FeedServer(ThreadingHTTPServer):
    """The feed at `/wrm`, `failures_csv` at `/failures`; keeps the requests it saw in `requests`."""

    daemon_threads = True

    def __init__(
        self, port: int = 0, city: City | None = None, speed: float = 1.0, offers_etag: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.city = city or City()
        self.speed = speed
        self.offers_etag = offers_etag
        self.started_at = datetime.now(UTC)
        self.misbehaviours: deque[str] = deque()
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.failures_csv = FAILURES_CSV.encode()
        self.last_text: str | None = None
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def misbehave(self, kind: str, count: int = 1) -> None:
        """Make the next `count` answers of the feed go wrong in one of the ways of `MISBEHAVIOURS`, or be
        `unchanged`."""
        if kind != "unchanged" and kind not in MISBEHAVIOURS:
            raise ValueError(f"Unknown misbehaviour: {kind}. Known: unchanged, {', '.join(MISBEHAVIOURS)}.")
        with self.lock:
            self.misbehaviours.extend([kind] * count)

    def answer(self) -> Answer:
        """The next answer of the feed."""
        with self.lock:
            kind = self.misbehaviours.popleft() if self.misbehaviours else None
            now = datetime.now(UTC)
            rhythm = self.started_at + (now - self.started_at) * self.speed
            text = self.city.snapshot(now, rhythm)
            if kind == "unchanged" and self.last_text is not None:
                text = self.last_text
            elif kind is not None and kind != "unchanged":
                return MISBEHAVIOURS[kind](text)
            self.last_text = text
            return Answer(text.encode())


class _Handler(BaseHTTPRequestHandler):
    server: FeedServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.requests.append((path, dict(self.headers)))
        if path == "/failures":
            self._send(Answer(self.server.failures_csv))
        elif path == "/wrm":
            self._send(self.server.answer())
        else:
            self._send(Answer(b"Not found: ask for /wrm or /failures", 404, "text/plain"))

    def do_POST(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        try:
            self.server.misbehave(query["kind"][0], int(query.get("count", ["1"])[0]))
        except (KeyError, ValueError) as error:
            self._send(Answer(str(error).encode(), 400, "text/plain"))
        else:
            self._send(Answer(b"As you wish", 200, "text/plain"))

    def _send(self, answer: Answer) -> None:
        etag = f'"{sha256(answer.body).hexdigest()[:16]}"'
        if self.server.offers_etag and self.headers.get("If-None-Match") == etag:
            self.send_response(304)
            self.send_header("ETag", etag)
            self.end_headers()
            return
        time.sleep(answer.stall_seconds)
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.body)))
            if self.server.offers_etag:
                self.send_header("ETag", etag)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body[: answer.cut_at])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up, as it does on a body that is too slow or too large
        self.close_connection = self.close_connection or answer.cut_at is not None

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def answering(server: ThreadingHTTPServer) -> Iterator[None]:
    """Have a server answering, in a thread of its own, for the length of a `with` block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def running_feed(
    port: int = 0, city: City | None = None, speed: float = 1.0, offers_etag: bool = False
) -> Iterator[FeedServer]:
    """Have the simulated feed answering for the length of a `with` block."""
    with FeedServer(port, city, speed, offers_etag) as server, answering(server):
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="0: any free port")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--speed", type=float, default=1.0, help="how fast the daily rhythm goes")
    parser.add_argument("--etag", action="store_true", help="offer conditional requests")
    parser.add_argument("--write-archive", type=Path, metavar="FOLDER")
    parser.add_argument("--days", type=int, default=2, help="days before today (UTC)")
    parser.add_argument("--cadence", type=float, default=10, help="minutes between snapshots")
    arguments = parser.parse_args()
    city = City(arguments.seed, lively=True)
    if arguments.write_archive:
        today = datetime.now(UTC).date()
        days = [today - timedelta(days=back) for back in range(arguments.days, 0, -1)]
        cadence = timedelta(minutes=arguments.cadence)
        print(f"{write_archive(arguments.write_archive, days, cadence, city)} files written")
        return
    with running_feed(arguments.port, city, arguments.speed, arguments.etag) as server:
        print(f"export WRM_FEED_URL={server.url}/wrm WRM_FAILURES_URL={server.url}/failures")
        print("The simulated feed is running; Ctrl-C stops it.", flush=True)
        wait_until_stopped()


if __name__ == "__main__":
    main()
