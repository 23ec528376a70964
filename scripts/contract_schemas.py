"""Writes docs/contracts: the built-in contracts as JSON Schema and Arrow schema. A test compares: run it when one changes."""

import json
from pathlib import Path

from pipelines.contracts.arrow import arrow_schema, json_schema
from schemas.contract import NAMES, builtin_contract

FOLDER = Path(__file__).parents[1] / "docs" / "contracts"


def written() -> dict[str, str]:
    """The files' names and texts."""
    found: dict[str, str] = {}
    for contract in map(builtin_contract, NAMES):
        found[f"{contract.name}.schema.json"] = json.dumps(json_schema(contract), indent=2, ensure_ascii=False) + "\n"
        shown = arrow_schema(contract).to_string(show_field_metadata=True, show_schema_metadata=True)
        found[f"{contract.name}.arrow.txt"] = "\n".join(line.rstrip() for line in shown.splitlines()) + "\n"
    return found


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in written().items():
        (FOLDER / name).write_text(text)
