"""The contracts that ship with Catchment, in their compiled form."""

from functools import cache
from importlib import resources

from schemas.contract import Contract, decode_contract
from schemas.errors import ContractError

NAMES = ("agent_heartbeat", "camera_frame", "network_flow", "slide", "vehicle_telemetry")


@cache
def builtin_contract(name: str) -> Contract:
    """A contract that ships with Catchment.

    Raises:
        ContractError: there is none of that name.
    """
    if name not in NAMES:
        raise ContractError(
            f"no built-in contract {name[:80]!r}; there are {', '.join(NAMES)}. Give a compiled contract's path instead"
        )
    return decode_contract(resources.files("schemas.contracts").joinpath(f"{name}.json").read_bytes())
