"""The contracts that ship with Catchment, in their compiled form."""

from functools import cache
from importlib import resources

from schemas.contract import Contract, decode_contract
from schemas.errors import ContractError

NAMES = (
    "agent_heartbeat",
    "camera_frame",
    "can_frame",
    "can_signal",
    "log_line",
    "network_flow",
    "slide",
    "vehicle_telemetry",
)
# Versions that devices in the field may still write; the core reads them for ever.
_PAST = (
    "camera_frame-1.0.0",
    "can_signal-1.0.0",
    "network_flow-1.0.0",
    "network_flow-1.1.0",
    "slide-1.0.0",
    "vehicle_telemetry-1.0.0",
)


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


@cache
def past_contracts() -> tuple[Contract, ...]:
    """The earlier versions of what ships with Catchment."""
    folder = resources.files("schemas.contracts").joinpath("past")
    return tuple(decode_contract(folder.joinpath(f"{name}.json").read_bytes()) for name in _PAST)
