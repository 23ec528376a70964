"""`edge-agent enrol`: the device's key and certificate request."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from catchment.runtime.output import say


def enrol(
    device: Annotated[str, typer.Argument(help="The device id: what the certificate's common name will be.")],
    folder: Annotated[Path, typer.Option(help="Where key and request go.")] = Path(),
    key: Annotated[Path | None, typer.Option(help="The key's file, if not device.key in the folder.")] = None,
    request: Annotated[Path | None, typer.Option(help="The request's file, if not device.csr in the folder.")] = None,
    director: Annotated[
        str,
        typer.Option(help="The keys whose orders this device follows: `catchment director show --bare` prints them; or a file."),
    ] = "",
) -> None:
    """Make this device's key, which never leaves it, and a request that an authority answers with a certificate."""
    from edge_agent.documents.trust import KEY_FILE_NAME, write_key_file
    from edge_agent.errors import ConfigError
    from edge_agent.identity import enrol as enrolling
    from schemas.errors import SchemaError
    from schemas.ids import enrolled_id

    key_path, request_path = key or folder / enrolling.KEY_NAME, request or folder / enrolling.REQUEST_NAME
    try:
        name = enrolled_id(device)
        keys = write_key_file(folder / KEY_FILE_NAME, director) if director else ()
        is_new = enrolling.enrol(name, key_path, request_path)
    except SchemaError as error:
        raise ConfigError(str(error)) from error
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: {error.strerror}; run it as who may write there") from error
    say(f"key      {key_path} ({'new' if is_new else 'used again'}, mode 0600: it stays here)")
    say(f"request  {request_path}")
    if keys:
        say(f"director {folder / KEY_FILE_NAME} ({len(keys)} trusted: [director] file in agent.toml names it)")
    say(
        f"Next: have it signed (docs/operator/install.md, Who a device is); put the answer next to it as {folder / 'device.pem'}."
    )
    sys.stdout.flush()
