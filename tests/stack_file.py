"""The stack of servers as compose reads it: infra/docker/compose.yaml with the variables of .env.example filled in."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "infra" / "docker"
VARIABLE = re.compile(r"\$\{([A-Z_0-9]+)(?:(:[?-])([^}]*))?\}")


def example():
    """The variables of .env.example, as a user copies it."""
    lines = (DOCKER / ".env.example").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


def filled():
    """The same, filled in."""
    return {name: value or f"a-{name.lower()}" for name, value in example().items()} | {
        "MAEFLOW_DATA": "/srv/data",
        "PREFECT_AUTH_STRING": "somebody:a-password",
    }


def with_values(node):
    """The file's tree with variables replaced as compose does it."""
    if isinstance(node, dict):
        return {key: with_values(value) for key, value in node.items()}
    if isinstance(node, list):
        return [with_values(value) for value in node]
    if isinstance(node, str):
        return VARIABLE.sub(lambda found: filled().get(found[1]) or (found[3] if found[2] == ":-" else ""), node)
    return node


TEXT = (DOCKER / "compose.yaml").read_text()
RAW = yaml.safe_load(TEXT)["services"]
FILE = with_values(yaml.safe_load(TEXT))
SERVICES = FILE["services"]
