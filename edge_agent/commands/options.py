"""The options that commands of the agent share."""

import os
from pathlib import Path
from typing import Annotated

import typer

from edge_agent.errors import ConfigError

CONFIG_VARIABLE = "CATCHMENT_AGENT_CONFIG"
AGENT = Path("agent.toml")
CONFIG_PLACES = (AGENT, Path("/etc/catchment/agent.toml"))


def found_config(ctx: typer.Context, param: typer.CallbackParam, value: Path) -> Path:
    """Return the configuration that `-c` names; without it, the one that is found.

    Raises:
        ConfigError: there is none.
    """
    source = ctx.get_parameter_source(str(param.name))
    if ctx.resilient_parsing or (source is not None and source.name != "DEFAULT"):
        return value
    if os.environ.get(CONFIG_VARIABLE):
        return Path(os.environ[CONFIG_VARIABLE])
    found = next((path for path in CONFIG_PLACES if path.exists()), None)
    if found is None:
        places = ", ".join(map(str, CONFIG_PLACES))
        raise ConfigError(f"no configuration: neither ${CONFIG_VARIABLE} nor {places}; give the agent's TOML file with -c")
    return found


Config = Annotated[
    Path,
    typer.Option(
        "-c",
        "--config",
        help="The agent's TOML file; default: $CATCHMENT_AGENT_CONFIG, ./agent.toml, /etc/catchment/agent.toml.",
        show_default=False,
        callback=found_config,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document for programs.")]
