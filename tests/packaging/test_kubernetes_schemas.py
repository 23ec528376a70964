"""The files for Kubernetes by Kubernetes' own schemas: `make test-peers` installs them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).resolve().parents[2] / "deploy" / "core" / "kubernetes"
# Its schema comes with Flink's operator.
FOREIGN = {"FlinkDeployment"}


def documents() -> list[dict[str, Any]]:
    found = [one for path in sorted(FOLDER.glob("*.yaml")) for one in yaml.safe_load_all(path.read_text())]
    return [one for one in found if one["kind"] not in FOREIGN]


@pytest.mark.parametrize("document", documents(), ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_an_object_is_one_that_kubernetes_knows_with_no_word_misspelt(document: dict[str, Any]) -> None:
    schemas = pytest.importorskip(
        "kubernetes_validate", reason="the schemas of Kubernetes are not installed; run make test-peers"
    )
    schemas.validate(document, schemas.latest_version(), strict=True)
