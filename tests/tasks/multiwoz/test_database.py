"""Database queries with the standard matching."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from morejax.tasks.multiwoz.database import Database
from morejax.tasks.multiwoz.errors import CorpusError


def restaurant(number: str, name: str, **columns: str) -> dict[str, str]:
    return {"id": number, "name": name, "area": "north", "food": "thai", "type": "restaurant", **columns}


def train(number: str, leave: str, arrive: str, **columns: str) -> dict[str, str]:
    places = {"departure": "alpha", "destination": "omega", "day": "monday"}
    return {"trainID": number, "leaveAt": leave, "arriveBy": arrive, **places, **columns}


TABLES = {
    "restaurant": [
        restaurant("1", "golden fork"),
        restaurant("2", "silver spoon", area="south", food="modern european"),
        restaurant("3", "golden forks", area="?", introduction="a place"),
    ],
    "attraction": [
        {"id": "7", "name": "big hall", "type": "mutliple sports", "entrance fee": "free", "openhours": "noon"},
        {"id": "8", "name": "wide pool", "type": "swimmingpool", "entrance fee": "?", "openhours": "noon"},
    ],
    "hotel": [{"id": "0", "name": "blue inn", "price": {"single": "50"}, "stars": "4", "parking": "yes"}],
    "train": [
        train("TR1", "09:00", "10:00"),
        train("TR2", "11:00", "12:00"),
        train("TR1", "13:00", "14:00", day="sunday"),
    ],
    "hospital": [{"department": "casualty", "id": 0, "phone": "1"}],
}


@pytest.fixture(scope="module")
def database() -> Database:
    return Database(TABLES)


def names(database: Database, domain: str, **constraints: object) -> list[str]:
    return [record["name"] for record in database.query(domain, constraints)]


def test_exact_and_wildcard(database: Database) -> None:
    assert names(database, "restaurant", area="south") == ["silver spoon", "golden forks"]
    assert names(database, "restaurant", area="South") == ["golden forks"]
    assert names(database, "restaurant", area="north", type="restaurant") == ["golden fork", "golden forks"]


def test_what_constrains_nothing(database: Database) -> None:
    everything = ["golden fork", "silver spoon", "golden forks"]
    for constraints in ({}, {"area": "dontcare"}, {"area": None}, {"bookday": "monday"}, {"introduction": "x"}):
        assert names(database, "restaurant", **constraints) == everything


def test_fuzzy_columns(database: Database) -> None:
    assert names(database, "restaurant", name="the golden fork restaurant") == ["golden fork", "golden forks"]
    assert names(database, "restaurant", food="european") == ["silver spoon"]
    assert names(database, "restaurant", name="") == []


def test_values_are_normalised(database: Database) -> None:
    assert names(database, "attraction", type="mutliple sports") == ["big hall"]
    assert names(database, "attraction", type="multiple sports") == ["big hall"]
    assert names(database, "attraction", type="swimming pool") == ["wide pool"]
    assert names(database, "attraction", entrancefee="free") == ["big hall", "wide pool"]
    assert names(database, "hotel", parking="free", stars=4) == []
    assert names(database, "hotel", parking="free", stars="4", price="dear") == ["blue inn"]


def test_times(database: Database) -> None:
    def leaving(**constraints: str) -> list[str]:
        return [record["leave"] for record in database.query("train", constraints)]

    assert leaving(leave="11:00") == ["11:00", "13:00"]
    assert leaving(arrive="noon") == ["09:00", "11:00"]
    assert leaving(arrive="12:00", leave="10:30", day="monday") == ["11:00"]
    assert leaving(arrive="whenever") == []  # read as midnight
    assert leaving(leave="whenever") == ["09:00", "11:00", "13:00"]
    with pytest.raises(ValueError, match="not a number"):
        leaving(leave="10:15 or 11:00")


def test_venues_are_ids(database: Database) -> None:
    assert database.venues("train", {}) == {"TR1", "TR2"}
    assert database.venues("restaurant", {"name": "golden fork"}) == {"1", "3"}
    # Two trains of one number are one venue: what is offered may be another row than what is asked for.
    sunday, monday = (database.venue_bits("train", {"day": day}) for day in ("sunday", "monday"))
    assert sunday & ~monday == 0
    assert monday & ~sunday != 0
    assert database.count("train", {}) == 3


def test_domains_without_a_queryable_table(database: Database) -> None:
    assert database.query("hospital", {}) == database.query("taxi", {}) == ()
    assert database.venues("taxi", {}) == frozenset()
    assert database.venue_bits("taxi", {}) == database.count("taxi", {}) == 0
    assert database.records("hospital") == ({"department": "casualty", "id": 0, "phone": "1"},)
    assert database.records("taxi") == ()


def test_rows_keep_all_columns(database: Database) -> None:
    assert database.query("attraction", {"type": "swimmingpool"})[0] == {
        "id": "8", "name": "wide pool", "type": "swimmingpool", "entrancefee": "?", "openhours": "noon",
    }  # fmt: skip


def test_values_that_are_no_text(database: Database) -> None:
    with pytest.raises(ValueError, match="not text"):
        database.query("hotel", {"stars": ["4"]})


def write(folder: Path, tables: dict[str, object]) -> Path:
    folder.mkdir()
    for domain, rows in tables.items():
        (folder / f"{domain}_db.json").write_text(json.dumps(rows))
    return folder


def test_load(tmp_path: Path) -> None:
    folder = write(tmp_path / "db", TABLES)
    for place in (folder, tmp_path):
        loaded = Database.load(place)
        assert loaded.venues("train", {}) == {"TR1", "TR2"}
        assert len(loaded.records("hospital")) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hotel": []}, "no rows for hotel"),
        ({"hotel": {"id": 1}}, "hotel_db.json: expected a list"),
        ({"hotel": [{"name": "x"}]}, "row 0 has no 'id'"),
    ],
)
def test_load_errors(tmp_path: Path, change: dict[str, object], message: str) -> None:
    write(tmp_path / "db", {**TABLES, **change})
    with pytest.raises(CorpusError, match=message):
        Database.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"restaurant_db\.json"):
        Database.load(tmp_path)


@pytest.mark.skipif("MOREJAX_MULTIWOZ_DIR" not in os.environ, reason="MOREJAX_MULTIWOZ_DIR is not set")
def test_real_databases() -> None:
    database = Database.load(os.environ["MOREJAX_MULTIWOZ_DIR"])
    assert len(database.query("train", {})) == 2828
    assert len(database.venues("train", {})) == 2462
    assert database.count("attraction", {"type": "multiple sports"}) == 1
    assert len(database.records("police")) == 1
