"""Claims about the JSON schema of cluster.yaml: it is up to date, and agrees with what `swiftclaw check` refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck as Hurry
from hypothesis import given
from hypothesis import settings as run
from hypothesis import strategies as st

from cluster.config import ConfigError, load, parse
from cluster.config.fields import block_schema
from cluster.config.schema import document, serve_file
from cluster.config.serve_file import APPLICATION_KEYS, FILE_KEYS
from cluster.config.settings import Settings
from tests.cluster.config.strategies import ARGS, JSON, KNOWN_KEYS

ROOT = Path(__file__).parents[3]
SCHEMA = serve_file()
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
SCHEMA_OF_ARGS = block_schema(Settings)
ARGS_VALIDATOR = jsonschema.Draft202012Validator(SCHEMA_OF_ARGS)
APPLICATION = {"name": "swiftclaw", "import_path": "deployments.app:build", "route_prefix": "/"}
IN_ARGS = ("applications", 0, "args")
UNHURRIED = run(deadline=None, suppress_health_check=[Hurry.too_slow])  # a busy machine is no failure


def serve(args: Any) -> dict[str, Any]:
    return {"proxy_location": "Disabled", "applications": [{**APPLICATION, "args": args}]}


def agent(**blocks: Any) -> dict[str, Any]:
    return {"agents": {"a": {"agent": "app:agent", **blocks}}}


def balancing(**blocks: Any) -> dict[str, Any]:
    return agent(loadBalancing=blocks)


def cors(**block: Any) -> dict[str, Any]:
    return {"http": {"cors": {"origins": ["https://a.example"], **block}}}


def refused_by_check(file: Any, folder: Path) -> list[str]:
    """The mistakes that `swiftclaw check` lists; none: it is valid."""
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(file), "utf-8")
    try:
        load(path)
    except ConfigError as error:
        return list(error.mistakes)
    return []


def refused_by_schema(file: Any) -> list[tuple[str | int, ...]]:
    """The paths of the mistakes that an editor marks."""
    return [tuple(error.absolute_path) for error in VALIDATOR.iter_errors(file)]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_the_file_in_the_package_is_up_to_date() -> None:
    """After a change: swiftclaw schema > cluster/config/schema.json"""
    assert (files("cluster.config") / "schema.json").read_text("utf-8") == document()


def test_it_is_a_valid_schema_of_draft_2020_12() -> None:
    assert SCHEMA["$schema"] == jsonschema.Draft202012Validator.META_SCHEMA["$id"]
    jsonschema.Draft202012Validator.check_schema(SCHEMA)


def settings_of(schema: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, inner in schema.get("properties", {}).items():
        yield f"{path}.{name}", inner
        yield from settings_of(inner, f"{path}.{name}")
    for part in ("items", "additionalProperties"):
        if isinstance(schema.get(part), dict):
            yield from settings_of(schema[part], path)


def test_every_setting_has_a_description_and_no_block_takes_unknown_keys() -> None:
    settings = dict(settings_of(SCHEMA_OF_ARGS))
    assert len(settings) > 70
    described = {path for path, schema in settings.items() if schema.get("description")}
    assert set(settings) - described == {".agents.loadBalancing.healthCheck"}  # it is described at .agents.healthCheck
    assert [path for path, schema in settings.items() if "properties" in schema and schema["additionalProperties"]] == []


def test_every_default_in_it_is_the_default() -> None:
    """Written out, a default changes nothing."""
    blocks = dict(settings_of(SCHEMA_OF_ARGS))
    defaults: dict[str, Any] = {}
    for path, schema in blocks.items():
        if "default" in schema and path.startswith(".agents.") and ".regions." not in path:
            *above, last = path.removeprefix(".agents.").split(".")
            block = defaults
            for name in above:
                block = block.setdefault(name, {})
            block[last] = schema["default"]
    optional = {name: defaults.pop(name) for name in ("scaling", "canary")}
    assert parse(agent(**defaults), ROOT) == parse(agent(), ROOT)
    assert parse(agent(**optional), ROOT) == parse(agent(scaling={"minInstances": 2}, canary={"minRequests": 50}), ROOT)


# --- what is right ----------------------------------------------------------------------------------------------------


def test_the_file_that_is_shipped_is_valid_and_names_the_schema() -> None:
    text = (ROOT / "cluster.yaml").read_text("utf-8")
    assert refused_by_schema(yaml.safe_load(text)) == []
    named = re.match(r"# yaml-language-server: \$schema=(.*)\n", text)
    assert named is not None
    assert json.loads((ROOT / named[1]).read_text("utf-8")) == SCHEMA


def test_all_that_its_comments_show_is_valid() -> None:
    text = re.sub(r"(?m)^( +)# (\w+:.*)$", r"\1\2", (ROOT / "cluster.yaml").read_text("utf-8"))
    assert "canary" in yaml.safe_load(text)["applications"][0]["args"]["agents"]["my-agent"]
    assert refused_by_schema(yaml.safe_load(text)) == []


def test_the_file_for_kubernetes_is_valid() -> None:
    documents = yaml.safe_load_all((ROOT / "deploy/kuberay/rayservice.yaml").read_text("utf-8"))
    (service,) = (one for one in documents if one["kind"] == "RayService")
    assert refused_by_schema(yaml.safe_load(service["spec"]["serveConfigV2"])) == []


def snippets() -> Iterator[tuple[str, Any]]:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for found in re.findall(r"(?ms)^```yaml\n(.*?)^```$", page.read_text("utf-8")):
            if "scrape_configs" not in found:  # that is for Prometheus
                yield page.name, yaml.safe_load(found)


def test_what_the_documentation_shows_is_valid() -> None:
    shown = list(snippets())
    assert len(shown) >= 4
    for page, snippet in shown:
        whole = snippet if "applications" in snippet else None
        args = snippet if set(snippet) <= set(SCHEMA_OF_ARGS["properties"]) else agent(**snippet)
        assert refused_by_schema(whole or serve(args)) == [], page


@pytest.mark.parametrize(
    "args",
    [
        None,
        {"gateways": [None]},
        {"agents": {"a": {"config": "own.json"}}},
        agent(regions=["eu", "us"]),
        agent(regions={"eu": None}),
        agent(scaling=None, limits=None, loadBalancing={"weighted": None}),
        {"admin": {"host": "::1"}, "trustedProxies": ["10.0.0.0/255.0.0.0", "fd00::/8", "::1"]},
        agent(agent="größe.übung:ägent"),
        balancing(slowStart=0, window="1d", sessionAffinity={"ttl": "1h30m"}),
        balancing(slowStart="0s", window="0.5s", healthCheck=None),
        {"http": {"maxBodyBytes": "1.5 GiB"}},
        {"http": {"cors": None}},
        {
            "http": {
                "cors": {"origins": ["https://*.example.com", "http://localhost:*", "http://[::1]:80", "null"], "maxAge": 0}
            }
        },
        {"http": {"cors": {"originRegex": "https://.*", "methods": ["get", "*"], "headers": ["*"], "credentials": True}}},
    ],
)
def test_unusual_but_right_settings_are_valid(args: Any) -> None:
    assert refused_by_schema(serve(args)) == []


def test_other_applications_are_not_judged() -> None:
    other = {"name": "shop", "import_path": "shop:app", "route_prefix": None, "args": {"agents": 7}}
    file = serve({})
    file["applications"].append(other)
    assert refused_by_schema(file) == []


def test_the_keys_of_a_serve_file_are_those_that_ray_knows(tmp_path: Path) -> None:
    from ray.serve.schema import ServeApplicationSchema, ServeDeploySchema

    assert set(FILE_KEYS) == set(ServeDeploySchema.model_fields)
    assert set(APPLICATION_KEYS) == set(ServeApplicationSchema.model_fields)
    file = {"x-anchors": {"a": 1}, **serve({}), "http_options": {"port": 8000}}
    assert refused_by_schema(file) == [] and not refused_by_check(file, tmp_path)


def test_a_setting_outside_the_args_is_said_to_belong_there(tmp_path: Path) -> None:
    (mistake,) = refused_by_check({**serve({}), "agents": {}}, tmp_path)
    assert "agents: belongs in applications[0].args" in str(mistake)


# --- what is wrong ----------------------------------------------------------------------------------------------------

BROKEN_BLOCKS: dict[str, dict[str, Any]] = {  # of one agent
    "agent": {"agent": "app.py"},
    "version": {"version": 1.1},
    "versions": {"versions": "v1"},
    "config": {"config": None},
    "resources.cpus": {"resources": {"cpus": -1}},
    "resources.gpu": {"resources": {"gpu": 1}},
    "regions": {"regions": "us-east-1"},
    "regions[0]": {"regions": ["us east"]},
    "regions.u/s": {"regions": {"u/s": {}}},
    "regions.us.instances": {"regions": {"us": {"instances": "3"}}},
    "regions.us.priority": {"regions": {"us": {"priority": -1}}},
    "regions.us.maxInstance": {"regions": {"us": {"maxInstance": 3}}},
    "regions.us.minInstances": {"regions": {"us": {"minInstances": 1.5}}},
    "loadBalancing": {"loadBalancing": "round-robin"},
    "loadBalancing.strategy": {"loadBalancing": {"strategy": "round-robbin"}},
    "loadBalancing.strategies": {"loadBalancing": {"strategies": "round-robin"}},
    "loadBalancing.window": {"loadBalancing": {"window": "5 min"}},
    "loadBalancing.regions": {"loadBalancing": {"regions": "us"}},
    "loadBalancing.weighted.eu": {"loadBalancing": {"weighted": {"eu": 1}}},
    "loadBalancing.weighted.instance-1": {"loadBalancing": {"weighted": {"instance-1": -1}}},
    "loadBalancing.slowStart": {"loadBalancing": {"slowStart": "soon"}},
    "loadBalancing.sessionAffinity": {"loadBalancing": {"sessionAffinity": True}},
    "loadBalancing.sessionAffinity.type": {"loadBalancing": {"sessionAffinity": {"type": "cookies"}}},
    "loadBalancing.sessionAffinity.ttl": {"loadBalancing": {"sessionAffinity": {"ttl": "0s"}}},
    "loadBalancing.sessionAffinity.learn.header": {"loadBalancing": {"sessionAffinity": {"learn": {"header": "a b"}}}},
    "loadBalancing.sessionAffinity.learn.cookie": {"loadBalancing": {"sessionAffinity": {"learn": {"cookie": ""}}}},
    "loadBalancing.sessionAffinity.enabled": {"loadBalancing": {"sessionAffinity": {"enabled": "yes"}}},
    "loadBalancing.healthCheck.interval": {"loadBalancing": {"healthCheck": {"interval": 0}}},
    "healthCheck.enabled": {"healthCheck": {"enabled": 1}},
    "healthCheck.unhealthyThreshold": {"healthCheck": {"unhealthyThreshold": 0}},
    "healthCheck.intervall": {"healthCheck": {"intervall": "5s"}},
    "limits.maxConnections": {"limits": {"maxConnections": 0}},
    "limits.requestTimeout": {"limits": {"requestTimeout": -1}},
    "limits.max_connections": {"limits": {"max_connections": 5}},
    "limits.maxConnectionsPerInstance": {"limits": {"maxConnectionsPerInstance": None}},
    "timeouts.idle": {"timeouts": {"idle": "5min"}},
    "timeouts.connect": {"timeouts": {"connect": "5s"}},
    "rateLimit.strategy": {"rateLimit": {"strategy": "leaky-bucket"}},
    "rateLimit.requests": {"rateLimit": {"requests": 0}},
    "rateLimit.window": {"rateLimit": {"window": 0}},
    "rateLimit.key": {"rateLimit": {"key": "user_id"}},
    "circuitBreaker.failureThreshold": {"circuitBreaker": {"failureThreshold": 0}},
    "circuitBreaker.timeout": {"circuitBreaker": {"timeout": 0}},
    "circuitBreaker.threshold": {"circuitBreaker": {"threshold": 5}},
    "retry.attempts": {"retry": {"attempts": -1}},
    "retry.budget": {"retry": {"budget": 101}},
    "scaling.targetCPU": {"scaling": {"targetCPU": 0}},
    "scaling.maxInstances": {"scaling": {"maxInstances": 0}},
    "scaling.targetCpu": {"scaling": {"targetCpu": 70}},
    "scaling.targetConnections": {"scaling": {"targetConnections": 0}},
    "scaling.downscaleDelay": {"scaling": {"downscaleDelay": "-1s"}},
    "canary.steps[1]": {"canary": {"steps": [10, 500]}},
    "canary.steps": {"canary": {"steps": []}},
    "canary.maxErrorRate": {"canary": {"maxErrorRate": "5%"}},
    "canary.maxLatency": {"canary": {"maxLatency": 2}},
    "accessLog.sample": {"accessLog": {"sample": 101}},
    "accessLog.errors": {"accessLog": {"errors": True}},
    "drainTimeout": {"drainTimeout": "ten minutes"},
    "runtimeEnv.pip": {"runtimeEnv": {"pip": "httpx"}},
    "runtimeEnv.env.PORT": {"runtimeEnv": {"env": {"PORT": 80}}},
    "runtimeEnv.env.A=B": {"runtimeEnv": {"env": {"A=B": "x"}}},
    "runtimeEnv.conda": {"runtimeEnv": {"conda": "x"}},
}
BROKEN: dict[str, dict[str, Any]] = {
    "agent": {"agent": {}},
    "gateways": {"gateways": {"region": "us"}},
    "gateways[0].port": {"gateways": [{"port": 0}]},
    "gateways[0].region": {"gateways": [{"region": "us east"}]},
    "gateways[0].host": {"gateways": [{"host": "example.org:80"}]},
    "gateways[0].replicas": {"gateways": [{"replicas": 0}]},
    "gateways[0].workers": {"gateways": [{"workers": "all"}]},
    "gateways[0].replica": {"gateways": [{"replica": 1}]},
    "gateways[0].tls.key": {"gateways": [{"tls": {"cert": "cert.pem"}}]},
    "gateways[0].tls.cert": {"gateways": [{"tls": {"cert": None, "key": "key.pem"}}]},
    "admin.port": {"admin": {"port": "8001"}},
    "admin.host": {"admin": {"host": True}},
    "admin.hosts": {"admin": {"hosts": "127.0.0.1"}},
    "stateDir": {"stateDir": ""},
    "http.maxBodyBytes": {"http": {"maxBodyBytes": "10Mi"}},
    "http.maxBody": {"http": {"maxBody": 1}},
    "http.cors.origins": cors(origins="https://a.example"),
    "http.cors.origins[0]": cors(origins=["https://a.example/"]),
    "http.cors.originRegex": cors(originRegex=7),
    "http.cors.methods[0]": cors(methods=["GET,POST"]),
    "http.cors.headers[0]": cors(headers=["a b"]),
    "http.cors.exposeHeaders[1]": cors(exposeHeaders=["a", ""]),
    "http.cors.credentials": cors(credentials="yes"),
    "http.cors.maxAge": cors(maxAge=-1),
    "http.cors.origin": cors(origin="*"),
    "clientRegions.10.0": {"clientRegions": {"10.0": "us"}},
    "clientRegions.10.0.0.0/8": {"clientRegions": {"10.0.0.0/8": "u s"}},
    "trustedProxies[0]": {"trustedProxies": ["proxy"]},
    "trustedProxies": {"trustedProxies": "10.0.0.0/8"},
    "distances.us.eu": {"distances": {"us": {"eu": 80}}},
    "distances.us": {"distances": {"us": "80ms"}},
    "agents": {"agents": ["a"]},
    "agents.a b": {"agents": {"a b": {"agent": "app:agent"}}},
    "agents.a.agent": {"agents": {"a": {"version": "v1"}}},
    "agents.a": {"agents": {"a": "app:agent"}},
    **{f"agents.a.{path}": agent(**blocks) for path, blocks in BROKEN_BLOCKS.items()},
}  # fmt: skip


def test_every_block_has_a_file_that_is_broken_in_it() -> None:
    blocks = {path for path, schema in settings_of(SCHEMA_OF_ARGS) if "properties" in schema}
    tried = {re.sub(r"^agents\.a\b", "agents", re.sub(r"\[\d\]|\.us\b", "", path)) for path in BROKEN}
    assert len(BROKEN) >= 50
    assert {block for block in blocks if not any(path.startswith(f"{block[1:]}.") for path in tried)} == set()


@pytest.mark.parametrize("path", BROKEN)
def test_a_mistake_is_refused_by_both_and_at_the_same_place(path: str, tmp_path: Path) -> None:
    file = serve(BROKEN[path])
    (mistake,) = refused_by_check(file, tmp_path)
    assert mistake.startswith(f"{path}: ")
    marked = refused_by_schema(file)
    assert marked
    for steps in marked:
        assert steps[:3] == IN_ARGS
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in steps[3:]).removeprefix(".")
        assert place in (path, path.rpartition(".")[0]) or path.startswith(f"{place}.10."), "the setting, or its block"


@pytest.mark.parametrize(
    "file",
    [
        {},
        {"agents": {}},
        {"applications": {}},
        {"applications": []},
        {"applications": [{**APPLICATION, "import_path": "shop:app"}]},
        {"applications": [APPLICATION, APPLICATION]},
        {"applications": [APPLICATION], "agents": {}},
        {"applications": [APPLICATION], "aplications": 3},
        {"applications": [{**APPLICATION, "route_prefixx": "/"}]},
        {"applications": [{**APPLICATION, "gateways": []}]},
        serve([]),
    ],
    ids=str,
)
def test_a_file_that_is_none_of_ours_is_refused_by_both(file: Any, tmp_path: Path) -> None:
    assert refused_by_check(file, tmp_path)
    assert refused_by_schema(file)


ONLY_CHECK = {  # what a schema cannot know
    "two gateways in a region": {"gateways": [{"region": "us"}, {"region": "us", "port": 9000}]},
    "a port that is taken by another gateway": {"gateways": [{"region": "us"}, {"region": "eu"}]},
    "a port that is the admin port": {"gateways": [{"port": 8001}]},
    "no gateway at all": {"gateways": []},
    "a region at a distance from itself": {"distances": {"us": {"us": "1ms"}}},
    "two distances for one pair": {"distances": {"us": {"eu": "1ms"}, "eu": {"us": "2ms"}}},
    "a distance of more than 10 s, as text": {"distances": {"us": {"eu": "1m"}}},
    "a network with host bits": {"trustedProxies": ["10.1.2.3/8"]},
    "one network under two names": {"clientRegions": {"10.0.0.1": "us", "10.0.0.1/32": "us"}},
    "more instances at least than at most": agent(scaling={"minInstances": 11}),
    "the same in a region": agent(regions={"us": {"minInstances": 3, "maxInstances": 2}}),
    "a region that the agent does not have": agent(regions={"us": {"instances": 1}}, loadBalancing={"regions": ["eu"]}),
    "weights that are all 0": balancing(weighted={"instance-1": 0}),
    "a session learned from a header and from a cookie": balancing(sessionAffinity={"learn": {"header": "a", "cookie": "b"}}),
    "steps that do not rise": agent(canary={"steps": [50, 10]}),
    "a size of less than a byte": {"http": {"maxBodyBytes": "0.5B"}},
    "cors without an origin": {"http": {"cors": {"credentials": True}}},
    "credentials for every origin": cors(origins=["*"], credentials=True),
    "credentials and every header": cors(exposeHeaders=["*"], credentials=True),
    "an expression that is none": cors(originRegex="("),
    "a whole number with a point": agent(retry={"attempts": 2.0}),
    "a file that does not exist": agent(config="none.json"),
    "a folder, which only `serve run` takes out before": {"folder": "/srv"},
}


@pytest.mark.parametrize("rule", ONLY_CHECK)
def test_rules_over_several_settings_are_checked_by_check_alone(rule: str, tmp_path: Path) -> None:
    file = serve(ONLY_CHECK[rule])
    assert len(refused_by_check(file, tmp_path)) == 1
    assert refused_by_schema(file) == []


# --- anything ---------------------------------------------------------------------------------------------------------


def accepts(args: Any) -> bool:
    try:
        parse(args, ROOT)
    except ConfigError:
        return False
    return True


@UNHURRIED
@given(ARGS)
def test_any_settings_that_are_read_are_valid_and_so_is_what_is_written_back(args: dict[str, Any]) -> None:
    settings = parse(args, ROOT)
    assert ARGS_VALIDATOR.is_valid(args)
    assert ARGS_VALIDATOR.is_valid(settings.to_args())


@UNHURRIED
@given(st.recursive(JSON, lambda inner: st.dictionaries(KNOWN_KEYS, inner, max_size=4), max_leaves=12))
def test_the_schema_never_refuses_what_check_accepts(block: Any) -> None:
    for args in (
        {"gateways": [block]},
        {"distances": block, "clientRegions": block},
        agent(regions=block, loadBalancing=block, scaling=block, runtimeEnv=block),
    ):
        assert ARGS_VALIDATOR.is_valid(args) or not accepts(args)
