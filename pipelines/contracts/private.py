"""Which columns could tell about a person: their values stay out of everything that is kept beside the rows themselves."""

from collections.abc import Iterable

from schemas.contract import Column, Contract, PiiClass


def is_private(column: Column) -> bool:
    """Whether the contract gives the column, or a field of it, a class of personal data."""
    return column.pii is not PiiClass.NONE or any(field.pii is not PiiClass.NONE for field in column.fields)


def private_columns(*contracts: Contract) -> frozenset[str]:
    """The private columns of these versions of a stream's contract: what one of them calls private is private in all."""
    return frozenset(column.name for contract in contracts for column in contract.columns if is_private(column))


def private_by_stream(contracts: Iterable[Contract]) -> dict[str, frozenset[str]]:
    """The private columns of each stream, over all versions of its contract."""
    found: dict[str, frozenset[str]] = {}
    for contract in contracts:
        found[contract.name] = found.get(contract.name, frozenset()) | private_columns(contract)
    return found
