"""The store: stage key -> artifact folder with its record, published whole."""

from anaus_bench.store.attempts import Workplace
from anaus_bench.store.marker import FORMAT, MARKER, is_marked, mark
from anaus_bench.store.records import Record
from anaus_bench.store.store import Store

__all__ = ["FORMAT", "MARKER", "Record", "Store", "Workplace", "is_marked", "mark"]
