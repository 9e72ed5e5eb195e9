"""Which records a record rests on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anaus_bench.errors import StoreError, shown
from anaus_bench.planning.specs import CorpusSpec
from anaus_bench.store import Record, Store

# Kind and role of each stage from a `score` down to the masks; a fold without a kept network has no `finetune`.
_TO_MASKS = (("predict", "fold0"), ("finetune", "finetune"), ("pretrain", "pretrain"), ("masks", "masks"))


def mask_scores(store: Store, record: Record) -> dict[str, float]:
    """Scores of the masks behind a `score` record; empty where its encoder was trained without, or they are gone."""
    masks, _ = masks_below(store, record)
    return {} if masks is None else dict(masks["result"]["scores"])


def masks_below(store: Store, record: Record) -> tuple[Record | None, str | None]:
    """Record of the masks behind a `score` record, and the stage on the way to it whose record is lost or damaged."""
    below = record
    for kind, role in _TO_MASKS:
        if role not in below["inputs"]:
            if kind == "finetune":
                continue
            return None, None
        key = below["inputs"][role]
        try:
            found = store.record(kind, key)
        except StoreError:
            return None, f"damaged: {kind} {key}"
        if found is None:
            return None, f"not in the store: {kind} {key}"
        below = found
    return below, None


def find_record(store: Store, key: str) -> Record:
    """Record of the only pre-training stage whose key begins so.

    Raises:
        StoreError: None, or several.
    """
    records = store.records("pretrain")
    found = [record for record in records if record["key"].startswith(key)]
    if len(found) == 1:
        return found[0]
    for other, fault in store.damaged("pretrain").items():
        if other.startswith(key) and not found:
            raise StoreError(fault)
    latest = "; ".join(f"{record['key']} {record['title']}" for record in (found or records)[-5:]) or "none"
    if found:
        raise StoreError(f"{shown(key)} begins the keys of {len(found)} encoders; give more of it (latest: {latest})")
    raise StoreError(
        f"store {str(store.root)!r} has no pretrain {shown(key)}; see `plan` for the keys (latest: {latest})"
    )


# Role of an input -> kind of its stage, for those through which data sets reach an encoder.
KIND_OF_ROLE = {"corpus": "corpus", "pairs": "corpus", "masks": "masks", "fit": "fit"}


def records_below(record: Record, store: Store) -> Iterator[tuple[str, str, Record | None]]:
    """Kind, key and record (None if it is no longer in the store) of the corpora, masks and fits below a stage."""
    for role, key in record["inputs"].items():
        if role in KIND_OF_ROLE:
            found = store.record(KIND_OF_ROLE[role], key)
            yield KIND_OF_ROLE[role], key, found
            if found is not None:
                yield from records_below(found, store)


def datasets_below(below: Sequence[tuple[str, str, Record | None]]) -> dict[str, bool]:
    """Name of each data set -> whether its images were generated for the run."""
    corpora = [CorpusSpec.model_validate(found["spec"]) for kind, _, found in below if kind == "corpus" and found]
    return {name: spec.fingerprint is None for corpus in corpora for name, spec in corpus.datasets.items()}
