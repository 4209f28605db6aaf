"""Which keys may stand in a Ray Serve config file around SwiftClaw's settings? Ray ignores the ones that it does not know.

Keys that begin with `x-` are free, for YAML anchors. Source: ServeDeploySchema and ServeApplicationSchema of ray.serve.schema.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from cluster.config.mistakes import Steps, did_you_mean

FILE_KEYS = (
    "applications", "proxy_location", "http_options", "grpc_options", "controller_options", "logging_config",
    "tracing_config", "target_capacity",
)  # fmt: skip
APPLICATION_KEYS = (
    "name", "import_path", "route_prefix", "args", "runtime_env", "host", "port", "deployments", "autoscaling_policy",
    "logging_config", "external_scaler_enabled",
)  # fmt: skip
FREE = "x-"


def unknown_keys(file: Mapping[object, object], application: int, settings: Collection[str]) -> Iterator[tuple[Steps, str]]:
    """The place of each unknown key and a sentence. `application`: SwiftClaw's index; `settings`: the keys of its args."""
    ours = file["applications"][application]  # type: ignore[index]
    args = f"applications[{application}].args"
    for steps, block, allowed in (((), file, FILE_KEYS), (("applications", application), ours, APPLICATION_KEYS)):
        for key in block:
            if key in allowed or str(key).startswith(FREE):
                continue
            if key in settings:
                yield (*steps, str(key)), f"belongs in {args}, where SwiftClaw's settings are"
            else:
                hint = did_you_mean(key, allowed)
                yield (*steps, str(key)), f"unknown key of a Ray Serve config file (allowed: {', '.join(allowed)}){hint}"
