"""Load the contracts a core knows: those that ship with Catchment, and a folder of ODCS documents.

At the start of a process a warning names contracts that ask for a retention: this release deletes no rows by their age.
"""

import re
from dataclasses import dataclass
from typing import Self

import structlog

from pipelines.contracts.odcs import load_odcs
from pipelines.contracts.yaml_source import yaml_files
from pipelines.errors import ConfigError
from schemas.chip_contract import chip_contract, slide_stream
from schemas.contract import NAMES, Contract, builtin_contract, past_contracts

ODCS_SUFFIX = ".odcs.yaml"

log = structlog.get_logger(__name__)
HINT = "rows stay until you delete them; the data engineer's page says how, and what goes with them"


@dataclass(frozen=True, slots=True)
class ContractSet:
    """Contracts by name and version; several versions of one name stand side by side."""

    contracts: tuple[Contract, ...]

    @classmethod
    def load(cls, folder: str) -> Self:
        """The built-in contracts and every `*.odcs.yaml` of the folder; the built-in ones alone for the folder "".

        A document of the folder replaces a built-in contract of the same name and version.

        Raises:
            ConfigError: a document is not a contract, or two have the same name and version; the message names file and line.
        """
        found = {(contract.name, contract.version): contract for contract in (*past_contracts(), *map(builtin_contract, NAMES))}
        own: dict[tuple[str, str], str] = {}
        for path in yaml_files(folder, ODCS_SUFFIX) if folder else ():
            contract = load_odcs(path)
            key = (contract.name, contract.version)
            if key in own:
                raise ConfigError(
                    f"{path}: contract {contract.name} {contract.version} is already in {own[key]}; raise the version"
                )
            own[key] = str(path)
            found[key] = contract
        _refuse_chips(found, own)
        return cls(tuple(sorted(found.values(), key=lambda contract: (contract.name, _ordered(contract.version)))))

    def get(self, name: str, version: str | None) -> Contract | None:
        """The contract of that name and version; the newest version for None. None if there is no such contract."""
        fitting = [contract for contract in self.contracts if contract.name == name and version in (None, contract.version)]
        return fitting[-1] if fitting else self._of_chips(name, version)

    def all(self) -> tuple[Contract, ...]:
        """Every contract that somebody wrote, by name and version: those that a run pins, and devices may send by."""
        return self.contracts

    def derived(self) -> tuple[Contract, ...]:
        """The contracts of chips, each of the newest version of its slides' contract."""
        slides = sorted({contract.name for contract in self.contracts if contract.chips})
        return tuple(chip_contract(newest) for name in slides if (newest := self.get(name, None)) is not None)

    def _of_chips(self, name: str, version: str | None) -> Contract | None:
        slides = slide_stream(name)
        if not any(contract.name == slides and contract.chips for contract in self.contracts):
            return None  # a stream whose newest version is no longer cut still has the chips of before
        slide = self.get(slides, version)
        return None if slide is None else chip_contract(slide)


def _refuse_chips(found: dict[tuple[str, str], Contract], own: dict[tuple[str, str], str]) -> None:
    """Refuse a written contract with the name of a stream of chips: both would fill one table."""
    cut = {contract.name for contract in found.values() if contract.chips}
    for name, version in found:
        if slide_stream(name) in cut:
            raise ConfigError(
                f"{own.get((name, version), name)}: the name {name} is that of the chips of stream {slide_stream(name)}, whose "
                "contract is derived; give this stream another name"
            )


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)))


def requested_retention(contracts: ContractSet) -> dict[str, int]:
    """The days of retention that the newest contract of each stream asks for; streams that ask for none are left out."""
    newest = {contract.name: contract for contract in contracts.all()}
    return {name: contract.retention_days for name, contract in newest.items() if contract.retention_days is not None}


def warn_of_retention(folder: str) -> dict[str, int]:
    """Log a warning if contracts ask for a retention; the streams and their days. A broken folder is for others to report.

    Args:
        folder: the folder of contracts, or "" for the built-in ones alone.
    """
    try:
        requested = requested_retention(ContractSet.load(folder))
    except ConfigError as error:
        log.debug("retention_unknown", reason=str(error))
        return {}
    if requested:
        log.warning("retention_not_enforced", days_by_stream=requested, hint=HINT)
    return requested
