"""Open the site of a policy command: the lake, the contracts and the policy folder of one core."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipelines.config import CoreConfig, load_core_config, require_folder
from pipelines.contracts.registry import ContractSet
from pipelines.errors import NotFoundError
from pipelines.inspect.columns import inspected
from pipelines.lake.lake import Lake, lake_at, lake_of
from pipelines.policy.active import policies_in_force
from schemas.contract import Contract
from schemas.policy import Policy


@dataclass(frozen=True, slots=True)
class LakeSite:
    """One core's lake and rules."""

    lake: Lake
    contracts: ContractSet
    folder: str

    @classmethod
    def open(cls, config: Path | None, lake: Path | None) -> Self:
        """The site that the options `-c` and `--lake` name.

        Raises:
            ConfigError: the configuration or a contract cannot be read.
            NotFoundError: there is no such lake.
        """
        core = load_core_config(config) if lake is None or config is not None else CoreConfig()
        require_folder(core.lake_root if lake is None else lake)
        found = lake_of(core) if lake is None else lake_at(lake)
        if not found.root.is_dir():
            raise NotFoundError(f"{found.root}: no such lake; give its folder with --lake, or the core's TOML file with -c")
        return cls(found, ContractSet.load(core.contracts), core.policies)

    def in_force(self) -> tuple[Policy, ...]:
        """The policies that the next run tags by."""
        return policies_in_force(self.lake, self.folder)

    def contract(self, stream: str, policies: tuple[Policy, ...]) -> Contract:
        """The newest contract of a stream, with the columns that the policies' inspect steps add.

        Raises:
            NotFoundError: there is none.
        """
        contract = self.contracts.get(stream, None)
        if contract is None:
            names = ", ".join(sorted({each.name for each in self.contracts.all()}))
            raise NotFoundError(f"there is no contract for stream {stream!r}; there are {names}")
        return inspected(contract, policies)
