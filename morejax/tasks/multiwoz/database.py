"""Databases of the bookable domains, queried with the matching of the standard scorer.

A row matches if every constraint on one of its columns holds: equal text, except partial ratio >= 90 on the
fuzzy columns, arrival not later and departure not earlier than asked. ``?`` in a row matches everything; a
dontcare value, a null and a slot that is no column constrain nothing. Results are sets of rows, kept as the
bits of an integer: a query is an AND of one memoised set per constraint.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from morejax.tasks.multiwoz import jsonfiles
from morejax.tasks.multiwoz.canonical import FUZZY_COLUMNS, IGNORED_COLUMNS, TYPES, VENUE_DOMAINS
from morejax.tasks.multiwoz.errors import CorpusError
from morejax.tasks.multiwoz.fuzzy import partial_ratio
from morejax.tasks.multiwoz.normalise import is_constraint, minutes, normalise_slot, normalise_value

Record = Mapping[str, Any]
"""One row: normalised column name -> value."""

FUZZY_THRESHOLD = 90
OTHER_DOMAINS = ("taxi", "hospital", "police", "bus")
_MEMO_LIMIT = 1 << 17


class Database:
    """All tables of a corpus, with memoised queries.

    Args:
        tables: domain -> rows as in the files; ``restaurant``, ``attraction``, ``hotel`` and ``train`` can be
            queried, other domains only be looked up with `records`.

    Raises:
        CorpusError: a table that can be queried is missing, empty, or has a row without its id.
    """

    def __init__(self, tables: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        missing = [domain for domain in VENUE_DOMAINS if not tables.get(domain)]
        if missing:
            raise CorpusError(f"database: no rows for {', '.join(missing)}; expected {VENUE_DOMAINS}")
        self._records = {domain: tuple(_normal_row(row) for row in rows) for domain, rows in tables.items()}
        self._tables = {domain: _Table(domain, self._records[domain]) for domain in VENUE_DOMAINS}
        self._memo: dict[tuple[str, frozenset[tuple[str, Any]]], tuple[int, int]] = {}

    @classmethod
    def load(cls, directory: Path | str) -> Database:
        """Read ``<domain>_db.json`` files.

        Args:
            directory: the ``db`` folder of a corpus, or the folder that holds it.

        Raises:
            CorpusError: a file is missing, not JSON, or not a list of rows.
        """
        directory = Path(directory)
        folder = directory / "db" if (directory / "db").is_dir() else directory
        tables = {domain: _read_table(folder, domain) for domain in VENUE_DOMAINS}
        for domain in OTHER_DOMAINS:
            if (folder / f"{domain}_db.json").exists():
                tables[domain] = _read_table(folder, domain)
        return cls(tables)

    def records(self, domain: str) -> tuple[Record, ...]:
        """All rows of a domain, in file order; empty for a domain without a table."""
        return self._records.get(domain, ())

    def query(self, domain: str, constraints: Mapping[str, Any]) -> tuple[Record, ...]:
        """Rows that match all constraints, in file order.

        Args:
            domain: any domain; one without a queryable table has no rows, as in the standard.
            constraints: slot -> value; slots in the scorer's names, values in any published spelling.

        Raises:
            ValueError: a time or value that the standard cannot read either.
        """
        if domain not in self._tables:
            return ()
        rows, _ = self._match(domain, constraints)
        records = self._records[domain]
        return tuple(records[i] for i in _bits(rows))

    def count(self, domain: str, constraints: Mapping[str, Any]) -> int:
        """Number of rows that `query` returns."""
        return self._match(domain, constraints)[0].bit_count() if domain in self._tables else 0

    def venues(self, domain: str, constraints: Mapping[str, Any]) -> frozenset[str]:
        """Ids (train ids for trains) of the rows that `query` returns."""
        if domain not in self._tables:
            return frozenset()
        names = self._tables[domain].venues
        return frozenset(names[i] for i in _bits(self.venue_bits(domain, constraints)))

    def venue_bits(self, domain: str, constraints: Mapping[str, Any]) -> int:
        """The same set as `venues`, as an integer: ``a`` is a subset of ``b`` exactly if ``a & ~b == 0``."""
        return self._match(domain, constraints)[1] if domain in self._tables else 0

    def _match(self, domain: str, constraints: Mapping[str, Any]) -> tuple[int, int]:
        try:
            key = (domain, frozenset(constraints.items()))
            found = self._memo.get(key)
        except TypeError:
            raise ValueError(f"{domain} {dict(constraints)!r}: a value is not text") from None
        if found is None:
            if len(self._memo) >= _MEMO_LIMIT:
                self._memo.clear()
            found = self._memo[key] = self._tables[domain].match(constraints)
        return found


class _Table:
    """One table that can be queried; a set of rows (or venues) is an integer with one bit per row (or
    venue)."""

    def __init__(self, domain: str, records: Sequence[Record]) -> None:
        self._fuzzy = FUZZY_COLUMNS[domain]
        # The columns of the first row are those that a constraint is compared with.
        self._columns = frozenset(records[0]) - IGNORED_COLUMNS[domain]
        self._all = (1 << len(records)) - 1
        self._values = {column: _rows_by_value(column, records) for column in self._columns}
        self._sets: dict[tuple[str, Any], int] = {}
        ids = [_venue_id(domain, i, record) for i, record in enumerate(records)]
        self.venues = tuple(dict.fromkeys(ids))
        numbers = {venue: i for i, venue in enumerate(self.venues)}
        self._venue_of_row = [1 << numbers[venue] for venue in ids]

    def match(self, constraints: Mapping[str, Any]) -> tuple[int, int]:
        rows = self._all
        for column, value in constraints.items():
            if column in self._columns and is_constraint(value):
                rows &= self._matching(column, normalise_value(column, value))
        venues = 0
        for row in _bits(rows):
            venues |= self._venue_of_row[row]
        return rows, venues

    def _matching(self, column: str, value: Any) -> int:
        key = (column, value)
        if key not in self._sets:
            if len(self._sets) >= _MEMO_LIMIT:
                self._sets.clear()
            self._sets[key] = self._compare(column, value)
        return self._sets[key]

    def _compare(self, column: str, value: Any) -> int:
        values = self._values[column]
        if column == "arrive":
            latest = minutes(value)
            return _union(rows for entry, rows in values.items() if entry == "?" or minutes(entry) <= latest)
        if column == "leave":
            earliest = minutes(value)
            return _union(rows for entry, rows in values.items() if entry == "?" or minutes(entry) >= earliest)
        if column in self._fuzzy:
            return _union(
                rows for entry, rows in values.items() if entry == "?" or partial_ratio(entry, value) >= FUZZY_THRESHOLD
            )
        return values.get("?", 0) | values.get(value, 0)


def _rows_by_value(column: str, records: Sequence[Record]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for i, record in enumerate(records):
        value = record.get(column)
        if isinstance(value, str):
            # The release misspells a type ("mutliple sports"); the standard's copy of the database has it right.
            value = TYPES.get(value, value) if column == "type" else value
            rows[value] = rows.get(value, 0) | 1 << i
    return rows


def _union(sets: Iterator[int]) -> int:
    union = 0
    for rows in sets:
        union |= rows
    return union


def _bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _normal_row(row: Mapping[str, Any]) -> dict[str, Any]:
    return {normalise_slot(column): value for column, value in row.items()}


def _venue_id(domain: str, row: int, record: Record) -> str:
    column = "trainid" if domain == "train" else "id"
    if column not in record:
        raise CorpusError(f"database of {domain}: row {row} has no {column!r}, found {sorted(record)}")
    return str(record[column])


def _read_table(folder: Path, domain: str) -> list[dict[str, Any]]:
    path = folder / f"{domain}_db.json"
    rows = jsonfiles.parse_database_json(jsonfiles.read_bytes(path), path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise CorpusError(f"{path}: expected a list of objects, one per row")
    return rows
