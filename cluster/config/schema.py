"""How does an editor know what cluster.yaml may say? A JSON schema (draft 2020-12) of the whole Ray Serve config file.

SwiftClaw's own part is made of the tables in `settings` and `agent_settings`, so it knows every setting that `parse` reads.
It accepts whatever `swiftclaw check` accepts, and more: rules that concern several settings are checked there alone.
`schema.json` beside this file is `document()`, for editors; `swiftclaw schema` prints the same.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from cluster.config.fields import Schema, block_schema
from cluster.config.serve_file import APPLICATION_KEYS, FILE_KEYS, FREE
from cluster.config.settings import APPLICATION, Settings

CLOSED: Schema = {"patternProperties": {f"^{FREE}": True}, "additionalProperties": False}
IMPORT_PATHS = [APPLICATION, APPLICATION.replace(":", ".")]


def document() -> str:
    """The schema as a JSON file."""
    return json.dumps(serve_file(), indent=2, ensure_ascii=False) + "\n"


def serve_file() -> Schema:
    """A Ray Serve config file, one of whose applications is SwiftClaw. Ray itself checks the values of its own keys."""
    ours = {"required": ["import_path"], "properties": {"import_path": {"enum": IMPORT_PATHS}}}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "SwiftClaw's cluster.yaml",
        "description": "A Ray Serve config file; SwiftClaw's settings are the args of its application.",
        "type": "object",
        "required": ["applications"],
        "properties": {
            **dict.fromkeys(FILE_KEYS, True),
            "proxy_location": {
                "description": "Where Ray Serve runs its own proxies. Disabled, because SwiftClaw's gateways replace them.",
                "enum": ["Disabled", "HeadOnly", "EveryNode"],
            },
            "applications": {
                "description": "The applications that Ray Serve runs; exactly one of them is SwiftClaw.",
                "type": "array",
                "contains": {"type": "object", **ours},
                "minContains": 1,
                "maxContains": 1,
                "items": _application() | {"if": ours, "then": _closed(APPLICATION_KEYS, {"args": _args()})},
            },
        },
        **CLOSED,
    }


def _closed(keys: Sequence[str], properties: Schema) -> Schema:
    return {"properties": {**dict.fromkeys(keys, True), **properties}, **CLOSED}


def _application() -> Schema:
    return {
        "type": "object",
        "properties": {
            "name": {"description": "Name of the Serve application: swiftclaw.", "type": "string"},
            "import_path": {
                "description": f"What Ray Serve imports: {APPLICATION} for SwiftClaw.",
                "type": "string",
                "examples": [APPLICATION],
            },
            "route_prefix": {"description": "Path prefix of the application: /.", "type": ["string", "null"]},
        },
    }


def _args() -> Schema:
    schema = block_schema(Settings)
    folder = {
        "description": "Base folder of paths and imports. `swiftclaw up` sets it; `serve run` uses the current folder.",
        "type": "string",
    }
    return {"description": "SwiftClaw's settings.", **schema, "properties": {**schema["properties"], "folder": folder}}
