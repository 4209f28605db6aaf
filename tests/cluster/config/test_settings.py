"""Claims about cluster.yaml: what it may say, what it means, and how its mistakes are told."""

from __future__ import annotations

import datetime
import json
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck as Hurry
from hypothesis import given
from hypothesis import settings as run
from hypothesis import strategies as st

from cluster.config import (
    AgentSettings,
    CanarySettings,
    ConfigError,
    GatewaySettings,
    RateLimit,
    RegionSettings,
    Scaling,
    Settings,
    agent_from_block,
    duration,
    load,
    parse,
)
from policies.rate_limit import LIMITERS
from swiftclaw import Agent
from tests.cluster.config.strategies import ARGS, JSON, KNOWN_KEYS

FOLDER = Path("/srv/agents")
EXAMPLE = Path(__file__).parents[3] / "cluster.yaml"


def agent(**blocks: Any) -> AgentSettings:
    return agent_from_block("a", {"agent": "app:agent", **blocks}, FOLDER)


def mistakes_in(**blocks: Any) -> list[str]:
    """What is said about these blocks of an agent, without the path to the agent."""
    with pytest.raises(ConfigError) as caught:
        agent(**blocks)
    return [line.removeprefix("agents.a.") for line in caught.value.mistakes]


def mistakes_in_args(args: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse(args, FOLDER)
    return list(caught.value.mistakes)


def only(mistakes: list[str]) -> str:
    assert len(mistakes) == 1, mistakes
    return mistakes[0]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(text: str, name: str = "cluster.yaml") -> Path:
        file = tmp_path / name
        file.write_text(text, "utf-8")
        return file

    return write


def serve_file(args: str) -> str:
    """A Ray Serve config file with these args, which are indented by the caller's margin."""
    indented = "\n".join("      " + line for line in args.splitlines())
    return f"applications:\n  - import_path: deployments.app:build\n    args:\n{indented}\n"


class TestTheExample:
    def test_runs_seven_instances_of_my_agent_in_three_equal_regions(self) -> None:
        settings = load(EXAMPLE)
        assert list(settings.agents) == ["my-agent"]
        mine = settings.agents["my-agent"]
        assert mine.agent == "examples.support:agent"
        assert {name: region.instances for name, region in mine.regions.items()} == {
            "us-east-1": 3,
            "eu-west-1": 2,
            "ap-southeast-1": 2,
        }
        assert {region.priority for region in mine.regions.values()} == {1}
        assert settings.gateways == (GatewaySettings("us-east-1", port=8000, replicas=2),)

    def test_shows_the_defaults_in_comments_unless_it_says_example(self, write: Callable[..., Path]) -> None:
        uncommented = re.sub(r"(?m)^( +)# (\w+:(?!.*# example).*)$", r"\1\2", EXAMPLE.read_text())
        assert uncommented.count("\n          limits: ") == 1
        shown, plain = load(write(uncommented)), load(write(EXAMPLE.read_text()))
        assert shown == plain

    def test_has_nothing_in_its_comments_that_would_be_a_mistake(self, write: Callable[..., Path]) -> None:
        uncommented = re.sub(r"(?m)^( +)# (\w+:.*)$", r"\1\2", EXAMPLE.read_text())
        write("{}", "my-agent.json")
        mine = load(write(uncommented)).agents["my-agent"]
        assert mine.canary == CanarySettings()
        assert mine.scaling == Scaling(2, 10, 70.0, 80.0)


@pytest.mark.parametrize("value", [0, 4, "auto"])
def test_workers_are_a_number_or_auto(value: object) -> None:
    assert parse({"gateways": [{"workers": value}]}, FOLDER).gateways[0].workers == value


@pytest.mark.parametrize("value", [-1, True, 1.5, "4", "all", 257])
def test_other_workers_are_a_mistake_that_says_what_is_allowed(value: object) -> None:
    with pytest.raises(ConfigError, match=r"gateways\[0\].workers: .* is not a number of workers \(0 to 256, or auto\)"):
        parse({"gateways": [{"workers": value}]}, FOLDER)


class TestDefaults:
    def test_no_args_at_all_are_one_gateway_and_no_agents(self) -> None:
        settings = parse({}, FOLDER)
        assert settings.gateways == (GatewaySettings("local", "127.0.0.1", 8000, 2),)
        assert settings.agents == {}
        assert settings.regions == ("local",)
        assert settings.state_dir == "/srv/agents/.swiftclaw"
        assert settings.http.max_body_bytes == 100 * 1024 * 1024

    def test_an_agent_needs_nothing_but_its_module_and_attribute(self) -> None:
        assert agent() == AgentSettings("a", "app:agent", regions={"local": RegionSettings(1)})

    def test_an_empty_block_is_the_default(self) -> None:
        assert agent(limits=None, scaling=None, regions=None, retry={}) == agent()

    def test_an_empty_health_check_inside_load_balancing_is_the_default_too(self) -> None:
        assert agent(loadBalancing={"healthCheck": None}) == agent()

    def test_an_empty_name_of_a_file_is_a_mistake(self) -> None:
        assert only(mistakes_in(config=None)).startswith("config: has no value")

    def test_an_empty_value_is_a_mistake_and_not_the_default(self) -> None:
        assert "has no value" in only(mistakes_in(loadBalancing={"strategy": None}))

    def test_a_gateway_without_a_region_is_in_the_first_agents_first_region(self) -> None:
        agents = {"a": {"agent": "app:agent", "regions": {"eu": {}, "us": {}}}}
        assert parse({"agents": agents}, FOLDER).gateways[0].region == "eu"
        named = parse({"agents": agents, "gateways": [{"port": 1}, {"region": "us", "port": 2}]}, FOLDER)
        assert [gateway.region for gateway in named.gateways] == ["eu", "us"]

    def test_regions_are_listed_as_first_named_the_gateways_first(self) -> None:
        agents = {"a": {"agent": "app:agent", "regions": ["eu", "us", "ap"]}}
        assert parse({"agents": agents, "gateways": [{"region": "us"}]}, FOLDER).regions == ("us", "eu", "ap")

    def test_regions_start_with_the_least_that_scaling_allows(self) -> None:
        scaling = {"minInstances": 3, "maxInstances": 9}
        assert agent(scaling=scaling).regions == {"local": RegionSettings(3)}
        assert agent(scaling=scaling, regions=["eu"]).regions == {"eu": RegionSettings(3)}
        own = agent(scaling=scaling, regions={"eu": {"minInstances": 5}, "us": {"instances": 4}})
        assert [region.instances for region in own.regions.values()] == [5, 4]

    def test_scaling_without_targets_has_both_of_them(self) -> None:
        assert agent(scaling={"minInstances": 1}).scaling == Scaling(1, 10, 70.0, 80.0)
        assert agent(scaling={"targetCPU": 50}).scaling == Scaling(2, 10, 50.0, None)

    def test_affinity_is_left_to_the_agent_unless_the_file_says(self) -> None:
        assert agent().load_balancing.session_affinity.enabled is None
        said = agent(loadBalancing={"sessionAffinity": {"enabled": False}})
        assert said.load_balancing.session_affinity.enabled is False

    def test_the_smaller_of_the_two_request_timeouts_holds(self) -> None:
        assert agent(limits={"requestTimeout": "20s"}).request_timeout_s == 20
        assert agent(timeouts={"request": "15s"}).request_timeout_s == 15


class TestValues:
    @pytest.mark.parametrize(
        ("said", "seconds"),
        [
            ("250ms", 0.25),
            ("5s", 5),
            ("1m", 60),
            ("1h", 3600),
            ("1h30m", 5400),
            ("1d", 86400),
            (2, 2),
            (0.5, 0.5),
            ("10", 10),
            ("1.5h", 5400),
            ("1m30s", 90),
            ("0s", 0),
        ],
    )
    def test_a_duration_is_seconds(self, said: str | float, seconds: float) -> None:
        assert duration(said) == seconds

    @pytest.mark.parametrize(
        "said",
        [
            -1,
            "-5s",
            float("nan"),
            float("inf"),
            True,
            "",
            " ",
            "5 s",
            "5min",
            "30m1h",
            "s",
            None,
            [],
            "1e3",
            10**400,
            "9" * 400,
            "٣s",
        ],
    )
    def test_what_is_no_duration_is_told_what_one_looks_like(self, said: Any) -> None:
        with pytest.raises(ConfigError, match=r"is not a duration \(250ms, 5s, 1m, 1h30m, or a number of seconds\)"):
            duration(said)

    @pytest.mark.parametrize(
        ("said", "size"), [(5, 5), ("100MiB", 104857600), ("10MB", 10**7), ("1.5KiB", 1536), ("7B", 7), ("2 GB", 2 * 10**9)]
    )
    def test_a_size_is_bytes(self, said: Any, size: int) -> None:
        assert parse({"http": {"maxBodyBytes": said}}, FOLDER).http.max_body_bytes == size

    @pytest.mark.parametrize("said", [0, -1, True, 1.5, "10Mi", "MB", "", "1e3"])
    def test_what_is_no_size_is_refused(self, said: Any) -> None:
        assert "is not a size" in only(mistakes_in_args({"http": {"maxBodyBytes": said}}))

    @pytest.mark.parametrize(
        ("given", "sentence"),
        [
            ("https://a.example/", "an origin has no path: https://a.example"),
            ("app.example.com", "did you mean https://app.example.com?"),
            ("https://bücher.example", "write the host as browsers send it (xn--…)"),
            ("https://*", "is not an origin (like https://app.example.com, "),
        ],
    )
    def test_an_origin_that_no_browser_would_send_is_refused(self, given: str, sentence: str) -> None:
        assert sentence in only(mistakes_in_args({"http": {"cors": {"origins": [given]}}}))

    def test_an_origin_is_read_as_browsers_send_it(self) -> None:
        cors = parse({"http": {"cors": {"origins": ["HTTPS://App.Example:443"], "methods": ["get"]}}}, FOLDER).http.cors
        assert cors is not None
        assert (cors.origins, cors.methods, cors.headers) == (("https://app.example",), ("GET",), ("*",))

    def test_distances_hold_both_ways(self) -> None:
        settings = parse({"distances": {"us": {"eu": "80ms", "ap": 0.22}}}, FOLDER)
        assert settings.distances_ms == {"us": {"eu": 80, "ap": 220}, "eu": {"us": 80}, "ap": {"us": 220}}

    @pytest.mark.parametrize(
        ("distances", "sentence"),
        [
            ({"us": {"eu": 80}}, "distances.us.eu: 80 is 80 seconds; at most 10 are allowed (milliseconds: 80ms)"),
            ({"us": {"us": "1ms"}}, "distances.us.us: the distance from a region to itself must be 0"),
            (
                {"us": {"eu": "1ms"}, "eu": {"us": "2ms"}},
                "distances.eu.us: is 2ms here, but 1ms in the opposite direction; make them equal",
            ),
        ],
    )
    def test_distances_that_cannot_be_are_refused(self, distances: Any, sentence: str) -> None:
        assert only(mistakes_in_args({"distances": distances})) == sentence

    def test_networks_are_kept_in_their_usual_form(self) -> None:
        args = {"clientRegions": {"10.0.0.0/8": "us", "192.0.2.7": "eu", "FD00::/8": "ap"}, "trustedProxies": ["::1"]}
        settings = parse(args, FOLDER)
        assert settings.client_regions == {"10.0.0.0/8": "us", "192.0.2.7/32": "eu", "fd00::/8": "ap"}
        assert settings.trusted_proxies == ("::1/128",)

    def test_a_network_with_host_bits_is_refused_with_the_network_that_was_meant(self) -> None:
        assert only(mistakes_in_args({"trustedProxies": ["10.1.2.3/8"]})) == (
            "trustedProxies[0]: '10.1.2.3/8' is not a network (10.0.0.0/8, fd00::/8); did you mean 10.0.0.0/8?"
        )

    def test_paths_start_from_the_folder_of_the_file(self) -> None:
        args = {"stateDir": "../state", "gateways": [{"tls": {"cert": "tls/cert.pem", "key": "/etc/key.pem"}}]}
        settings = parse(args, FOLDER)
        tls = settings.gateways[0].tls
        assert settings.state_dir == "/srv/state"
        assert tls is not None
        assert (tls.cert, tls.key) == ("/srv/agents/tls/cert.pem", "/etc/key.pem")

    def test_the_runtime_environment_is_handed_on_in_rays_words(self) -> None:
        said = agent(runtimeEnv={"pip": ["httpx==0.27"], "env": {"LEVEL": "info"}})
        assert said.runtime_env == {"pip": ["httpx==0.27"], "env_vars": {"LEVEL": "info"}}


class TestMistakes:
    def test_a_wrong_value_is_answered_with_what_is_allowed_and_what_was_meant(self) -> None:
        args = {"agents": {"my-agent": {"agent": "a:b", "loadBalancing": {"strategy": "round-robbin"}}}}
        assert only(mistakes_in_args(args)) == (
            "agents.my-agent.loadBalancing.strategy: 'round-robbin' is not a strategy (round-robin, least-connections, "
            "response-time, geographic); did you mean round-robin?"
        )

    def test_all_mistakes_are_listed_in_the_order_of_the_document(self) -> None:
        args = {
            "agents": {
                "a": {
                    "loadBalancing": {"healthCheck": {"interval": 0}, "window": "soon"},
                    "limits": {"maxConnections": 0, "requestTimeout": -1},
                    "scaling": {"maxInstances": 1},
                }
            },
            "gateways": [{"port": 0}, {"port": 8001, "replicaz": 1}],
            "stateDir": 7,
        }
        assert [line.split(": ")[0] for line in mistakes_in_args(args)] == [
            "agents.a.agent",
            "agents.a.loadBalancing.window",
            "agents.a.loadBalancing.healthCheck.interval",
            "agents.a.limits.maxConnections",
            "agents.a.limits.requestTimeout",
            "agents.a.scaling.maxInstances",
            "gateways[0].port",
            "gateways[1].replicaz",
            "stateDir",
        ]

    def test_the_error_reads_as_its_lines_also_after_a_journey_between_processes(self) -> None:
        error = pickle.loads(pickle.dumps(ConfigError("one", "two")))
        assert (str(error), error.mistakes) == ("one\ntwo", ("one", "two"))

    @pytest.mark.parametrize(
        ("blocks", "sentence"),
        [
            ({"agent": "support"}, "agent: 'support' does not name an Agent (module:attribute, like examples.support:agent)"),
            ({"agent": "a/b.py:agent"}, "agent: 'a/b.py:agent' does not name an Agent"),
            ({"version": "v1/2"}, "version: 'v1/2' is not a version (letters, digits, . - and _; at most 63"),
            ({"version": 1.1}, "version: 1.1 is not a version: YAML reads it as a number; put it in quotes"),
            ({"version": datetime.date(2024, 1, 2)}, "version: 2024-01-02 is not a version: YAML reads it as a date;"),
            ({"regions": {False: {}}}, "regions.false: false is not a region: YAML reads a bare yes, no, on, off,"),
            ({"regions": {"a b": {}}}, "regions.a b: 'a b' is not a name for a region"),
            ({"regions": {"a\n": {}}}, r"regions.'a\n': 'a\n' is not a name for a region"),
            ({"regions": ["eu", "eu"]}, "regions: ['eu', 'eu'] lists a region twice"),
            ({"regions": 3}, "regions: 3 is not a mapping from a region to its settings"),
            ({"regions": {"eu": {"instances": -1}}}, "regions.eu.instances: -1 is not a whole number (at least 0)"),
            ({"regions": {"eu": {"instances": True}}}, "regions.eu.instances: true is not a whole number"),
            ({"regions": {"eu": {"instances": "3"}}}, "regions.eu.instances: '3' is not a whole number"),
            ({"regions": {"eu": {"priority": -1}}}, "regions.eu.priority: -1 is not a whole number (at least 0)"),
            (
                {"regions": {"eu": {"minInstances": 3, "maxInstances": 2}}},
                "regions.eu.maxInstances: 2 is less than minInstances, which is 3",
            ),
            (
                {"regions": {"eu": {"maxInstances": 1}}, "scaling": {"minInstances": 2}},
                "regions.eu.maxInstances: 1 is less than minInstances, which is 2",
            ),
            ({"scaling": {"minInstances": 11}}, "scaling.maxInstances: 10 is less than minInstances, which is 11"),
            ({"scaling": {"targetCPU": 0}}, "scaling.targetCPU: 0 is not a percentage (above 0, at most 100)"),
            ({"retry": {"budget": 101}}, "retry.budget: 101 is not a percentage (0 to 100)"),
            ({"retry": {"attempts": 1.5}}, "retry.attempts: 1.5 is not a whole number (at least 0)"),
            ({"resources": {"cpus": float("nan")}}, "resources.cpus: nan is not a number (at least 0)"),
            ({"resources": {"cpus": 10**400}}, "resources.cpus: "),
            ({"limits": []}, "limits: [] is not a block of settings (maxConnections, maxConnectionsPerInstance,"),
            ({"limits": {"max_connections": 5}}, "limits.max_connections: unknown setting (allowed: maxConnections,"),
            ({"circuitBreaker": {"enabled": "yes"}}, "circuitBreaker.enabled: 'yes' is not a boolean (true, false)"),
            ({"healthCheck": {"unhealthyThreshold": 0}}, "healthCheck.unhealthyThreshold: 0 is not a whole number"),
            ({"rateLimit": {"window": 0}}, "rateLimit.window: 0 is not a duration above zero"),
            ({"canary": {"steps": [50, 10]}}, "canary.steps: [50, 10] is not a list of percentages in ascending order"),
            ({"canary": {"steps": [50, 500]}}, "canary.steps[1]: 500 is not a percentage"),
            ({"runtimeEnv": {"env": {"PORT": 80}}}, "runtimeEnv.env.PORT: 80 is not a value of an environment variable:"),
            ({"runtimeEnv": {"env": {"A=B": "x"}}}, "runtimeEnv.env.A=B: 'A=B' is not the name of an environment variable"),
            ({"runtimeEnv": {"pip": "httpx"}}, "runtimeEnv.pip: 'httpx' is not a list of requirements"),
            ({"loadBalancing": {"sessionAffinity": {"ttl": 0}}}, "loadBalancing.sessionAffinity.ttl: 0 is not a duration"),
            ({"loadBalancing": {"weighted": {"eu": 1}}}, "loadBalancing.weighted.eu: 'eu' is not the name of an instance"),
            ({"loadBalancing": {"weighted": {"instance-1": -1}}}, "loadBalancing.weighted.instance-1: -1 is not a weight"),
            ({"loadBalancing": {"weighted": {"instance-1": 0}}}, "loadBalancing.weighted: all weights are 0"),
            (
                {"regions": ["us-east-1"], "loadBalancing": {"regions": ["us-east-2"]}},
                "loadBalancing.regions[0]: 'us-east-2' is not a region of this agent (us-east-1); did you mean us-east-1?",
            ),
        ],
    )
    def test_each_is_one_line_with_path_value_and_what_is_allowed(self, blocks: Any, sentence: str) -> None:
        line = only(mistakes_in(**blocks))
        assert line.startswith(sentence)
        assert "\n" not in line

    @pytest.mark.parametrize(
        ("args", "sentence"),
        [
            ([], "args: [] is not a block of settings"),
            ({"admin": {"host": "localhost:8001"}}, "admin.host: 'localhost:8001' is not a host"),
            ({"admin": {"port": 65536}}, "admin.port: 65536 is not a port (1 to 65535)"),
            ({"gateways": []}, "gateways: needs at least one gateway"),
            ({"gateways": {"region": "eu"}}, "gateways: {'region': 'eu'} is not a list of gateways"),
            ({"gateways": [{"tls": {"cert": "c"}}]}, "gateways[0].tls.key: is missing"),
            ({"gateways": [{"port": 8001}]}, "gateways[0].port: 8001 is already used as the admin port on 127.0.0.1"),
            ({"gateways": [{"port": 8001, "host": "0.0.0.0"}]}, "gateways[0].port: 8001 is already used as the admin port on"),
            ({"gateways": [{}, {}]}, "gateways[1]: region local already has a gateway"),
            ({"gateways": [{}, {"region": "eu"}]}, "gateways[1].port: 8000 is already used by gateways[0] on 127.0.0.1"),
            ({"gateways": [{}, {"region": "eu", "host": "0.0.0.0"}]}, "gateways[1].port: 8000 is already used by gateways[0]"),
            (
                {"gateways": [{}, {"region": "eu", "host": "localhost"}]},
                "gateways[1].port: 8000 is already used by gateways[0]",
            ),
            ({"agents": {"a/b": {"agent": "a:b"}}}, "agents.a/b: 'a/b' is not a name for an agent"),
            ({"stateDir": ""}, "stateDir: '' is not a path"),
            ({"clientRegions": {"10.0.0.1": "a", "10.0.0.1/32": "a"}}, "clientRegions.10.0.0.1/32: 10.0.0.1/32 is given twice"),
        ],
    )
    def test_each_outside_the_agents_is_one_line_too(self, args: Any, sentence: str) -> None:
        assert only(mistakes_in_args(args)).startswith(sentence)

    def test_gateways_on_different_addresses_may_share_a_port(self) -> None:
        gateways = [{"region": "us", "host": "10.0.0.1"}, {"region": "eu", "host": "10.0.0.2"}]
        assert len(parse({"gateways": gateways}, FOLDER).gateways) == 2

    def test_a_mistake_is_told_once_and_not_again_by_what_follows_from_it(self) -> None:
        blocks = {
            "scaling": {"minInstances": "x", "maxInstances": 1},
            "regions": {"e u": {}},
            "loadBalancing": {"regions": ["eu"]},
        }
        assert [line.split(":")[0] for line in mistakes_in(**blocks)] == ["scaling.minInstances", "regions.e u"]


@pytest.mark.parametrize("strategy", LIMITERS)
def test_every_strategy_of_rate_limits_can_be_configured_and_decorated_with(strategy: str) -> None:
    assert agent(rateLimit={"strategy": strategy}).rate_limit == RateLimit(strategy=strategy)
    decorated = Agent("a")
    decorated.rate_limit(requests=1, strategy=strategy)(lambda message: message)
    assert [rule.strategy for rule in decorated.rate_limits] == [strategy]


def test_no_other_strategy_of_rate_limits_can() -> None:
    names = ", ".join(LIMITERS)
    assert f"({names})" in only(mistakes_in(rateLimit={"strategy": "leaky-bucket"}))
    with pytest.raises(ValueError, match=f"'leaky-bucket' is not one of {names}"):
        Agent("a").rate_limit(requests=1, strategy="leaky-bucket")


class TestTheFile:
    def test_is_read_as_json_too(self, write: Callable[..., Path]) -> None:
        file = {"applications": [{"import_path": "deployments.app:build", "args": {"admin": {"port": 9000}}}]}
        settings = load(write(json.dumps(file, indent="\t"), "cluster.json"))
        assert settings.admin.port == 9000
        assert settings.folder == str(write("").parent)

    def test_may_hold_other_applications_whose_args_are_not_judged(self, write: Callable[..., Path]) -> None:
        other = "  - import_path: shop:app\n    args: {a: 1_000, a: 2}\n"
        assert load(write(serve_file("admin: {port: 9000}") + other)).admin.port == 9000

    def test_without_args_is_all_defaults(self, write: Callable[..., Path]) -> None:
        file = write("applications: [{import_path: deployments.app:build}]")
        assert load(file) == parse({}, file.parent)

    @pytest.mark.parametrize(
        ("text", "sentence"),
        [
            ("", "not a Ray Serve config file: it has no `applications`"),
            ("agents: {}", "not a Ray Serve config file: it has no `applications`"),
            ("applications: {a: 1}", "applications: {'a': 1} is not a list of applications"),
            (
                "applications: [{import_path: shop:app}, 7]",
                "no application has import_path: deployments.app:build (found: 'shop:app'",
            ),
            ("applications: []", "no application has import_path: deployments.app:build (found: none)"),
            ("a: !!bool maybe", "not YAML: 'maybe'"),
            ("a: !!python/name:os.system", "not YAML: could not determine a constructor"),
            ("a: " + "[" * 5000, "blocks are nested too deeply"),
            ("a: 1\n---\nb: 2", "not YAML: but found another document"),
        ],
    )
    def test_that_is_not_for_us_is_told_what_is_missing(self, text: str, sentence: str, write: Callable[..., Path]) -> None:
        file = write(text)
        with pytest.raises(ConfigError) as caught:
            load(file)
        line = only(list(caught.value.mistakes))
        assert line.startswith(str(file))
        assert sentence in line
        assert "\n" not in line

    def test_with_two_of_our_applications_is_refused(self, write: Callable[..., Path]) -> None:
        with pytest.raises(ConfigError, match="more than one application"):
            load(write(serve_file("{}") + "  - import_path: deployments.app.build\n"))

    def test_that_is_not_yaml_is_told_line_and_column(self, write: Callable[..., Path]) -> None:
        file = write("applications:\n  - a: b: c\n")
        with pytest.raises(ConfigError, match=re.escape(f"{file}:2:9: not YAML: mapping values are not allowed here")):
            load(file)

    def test_that_is_not_json_is_told_line_and_column(self, write: Callable[..., Path]) -> None:
        with pytest.raises(ConfigError, match=r"cluster\.json:2:1: not JSON: "):
            load(write("{\n", "cluster.json"))

    def test_that_does_not_exist_or_cannot_be_read_is_told_so(self, tmp_path: Path) -> None:
        (tmp_path / "latin").write_bytes(b"a: \xe9")
        for name, sentence in (
            ("none", "no such file"),
            ("", "cannot be read"),
            ("latin", "not UTF-8"),
            ("\0", "cannot be read"),
        ):
            with pytest.raises(ConfigError, match=sentence):
                load(tmp_path / name)

    def test_may_not_give_a_key_twice(self, write: Callable[..., Path]) -> None:
        with pytest.raises(ConfigError) as caught:
            load(write(serve_file("agents:\n  a:\n    agent: a:b\n    retry: {}\n    retry: {}\nstateDir: x\nstateDir: y")))
        assert caught.value.mistakes == (
            "agents.a.retry: is given twice, on lines 7 and 8",
            "stateDir: is given twice, on lines 9 and 10",
        )

    def test_may_not_give_its_args_twice(self, write: Callable[..., Path]) -> None:
        with pytest.raises(ConfigError, match=re.escape("applications[0].args: is given twice, on lines 3 and 5")):
            load(write(serve_file("stateDir: x") + "    args: {}\n"))

    @pytest.mark.parametrize(
        ("said", "sentence"),
        [
            ("1_000", "1_000 is not a number to every YAML parser; write 1000 (line 4)"),
            ("1:30", "1:30 is read by YAML as a base-60 number; write a duration like 1h30m, or put it in quotes (line 4)"),
            ("0100", "0100 is read by YAML as an octal number; write 100, or put it in quotes (line 4)"),
        ],
    )
    def test_may_not_hold_numbers_that_yaml_reads_otherwise(self, said: str, sentence: str, write: Callable[..., Path]) -> None:
        with pytest.raises(ConfigError) as caught:
            load(write(serve_file(f"http: {{maxBodyBytes: {said}}}")))
        assert only(list(caught.value.mistakes)) == f"http.maxBodyBytes: {sentence}"

    def test_may_use_anchors_and_merges_but_no_endless_ones(self, write: Callable[..., Path]) -> None:
        shared = "agents:\n  a: &a {agent: 'm:a', version: v2}\n  b: {<<: *a, agent: 'm:b'}"
        settings = load(write(serve_file(shared)))
        assert settings.agents["b"].version == "v2"
        with pytest.raises(ConfigError, match="an alias refers to a block that contains it"):
            load(write(serve_file("agents: &a {b: *a}")))


class TestFilesOfAnAgentsOwn:
    @pytest.fixture
    def read(self, write: Callable[..., Path], tmp_path: Path) -> Callable[..., AgentSettings]:
        def read(file: Any, **blocks: Any) -> AgentSettings:
            write(file if isinstance(file, str) else json.dumps(file), "own.json")
            return agent_from_block("a", {"config": "own.json", **blocks}, tmp_path)

        return read

    def test_are_merged_and_cluster_yaml_wins(self, read: Callable[..., AgentSettings]) -> None:
        own = {"agent": "a:b", "limits": {"maxConnections": 1, "maxConnectionsPerInstance": 2}}
        limits = read(own, limits={"maxConnections": 9}).limits
        assert (limits.max_connections, limits.max_connections_per_instance) == (9, 2)

    def test_are_no_longer_needed_once_read(self, tmp_path: Path, write: Callable[..., Path]) -> None:
        own = write("limits: {maxConnections: 3}", "own.yaml")
        settings = parse({"agents": {"a": {"agent": "a:b", "config": "own.yaml"}}}, tmp_path)
        own.unlink()
        assert parse(settings.to_args(), tmp_path) == settings
        assert settings.agents["a"].limits.max_connections == 3

    def test_are_named_by_the_mistakes_in_them_and_only_by_those(self, read: Callable[..., AgentSettings]) -> None:
        own = {
            "agent": "a:b",
            "limits": {"maxConnections": 0, "connectionTimeout": 0},
            "loadBalancing": {"healthCheck": {"timeout": 0}},
            "retri": {},
        }
        with pytest.raises(ConfigError) as caught:
            read(own, limits={"maxConnections": -1})
        assert [line.split(": ")[:2] for line in caught.value.mistakes] == [
            ["agents.a.limits.maxConnections", "-1 is not a whole number (at least 1)"],
            ["own.json", "limits.connectionTimeout"],
            ["own.json", "retri"],
            ["own.json", "loadBalancing.healthCheck.timeout"],
        ]

    @pytest.mark.parametrize(
        ("file", "sentence"),
        [
            ("[1]", "agents.a.config: own.json must contain an agent's blocks of settings, not [1]"),
            ("{", "own.json:1:2: not JSON: "),
            ('{"agent": "a:b", "agent": "a:b"}', "own.json: agent: is given twice in one block"),
            ('{"agent": "a:b", "config": "other.json"}', "own.json: config: unknown setting"),
        ],
    )
    def test_that_will_not_do_are_told_why(self, file: str, sentence: str, read: Callable[..., AgentSettings]) -> None:
        with pytest.raises(ConfigError) as caught:
            read(file, agent="a:b")
        assert sentence in only(list(caught.value.mistakes))

    def test_that_do_not_exist_are_a_mistake_at_config(self) -> None:
        assert "config: /srv/agents/none.json: no such file" in only(mistakes_in(config="none.json"))


class TestHealthCheck:
    def test_may_stand_inside_load_balancing(self) -> None:
        assert agent(loadBalancing={"healthCheck": {"interval": "7s"}}).health_check.interval_s == 7

    def test_in_both_places_is_merged_and_the_outer_one_wins(self) -> None:
        both = agent(loadBalancing={"healthCheck": {"interval": "7s", "timeout": "2s"}}, healthCheck={"timeout": "1s"})
        assert (both.health_check.interval_s, both.health_check.timeout_s) == (7, 1)

    def test_is_told_its_mistakes_where_it_stands(self) -> None:
        blocks = {"loadBalancing": {"healthCheck": {"interval": 0}}, "healthCheck": {"timeout": 0}}
        assert {line.split(":")[0] for line in mistakes_in(**blocks)} == {
            "loadBalancing.healthCheck.interval",
            "healthCheck.timeout",
        }
        assert only(mistakes_in(loadBalancing={"healthCheck": 5})).startswith("loadBalancing.healthCheck: 5 is not a block")


# Properties: any settings, any typo, any input.

UNHURRIED = run(deadline=None, suppress_health_check=[Hurry.too_slow])  # a busy machine is no failure


@UNHURRIED
@given(ARGS)
def test_any_settings_come_back_from_the_args_they_write(args: dict[str, Any]) -> None:
    settings = parse(args, FOLDER)
    written = settings.to_args()
    assert parse(json.loads(json.dumps(written)), FOLDER) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


@UNHURRIED
@given(ARGS)
def test_what_was_not_written_does_not_matter_for_equality(args: dict[str, Any]) -> None:
    settings = parse(args, FOLDER)
    bare = replace(settings, written=frozenset())
    assert bare == settings
    assert parse(bare.to_args(), FOLDER) == settings


BLOCKS = {
    "limits": ["maxConnections", "maxConnectionsPerInstance", "connectionTimeout", "holdWhenNone", "requestTimeout"],
    "healthCheck": ["enabled", "interval", "timeout", "unhealthyThreshold", "healthyThreshold"],
    "scaling": ["minInstances", "maxInstances", "targetCPU", "targetConnections", "downscaleDelay"],
    "loadBalancing": ["strategy", "window", "weighted", "sessionAffinity", "slowStart", "healthCheck"],
    "timeouts": ["connection", "request", "idle"],
    "circuitBreaker": ["enabled", "failureThreshold", "resetTimeout"],
    "resources": ["cpus", "gpus"],
}
KEYS = [(block, key) for block, keys in BLOCKS.items() for key in keys]


@UNHURRIED
@given(st.sampled_from(KEYS), st.data())
def test_any_slip_of_one_letter_in_a_key_is_asked_what_was_meant(key: tuple[str, str], data: st.DataObject) -> None:
    block, name = key
    at = data.draw(st.integers(1, len(name) - 1))
    typo = data.draw(
        st.sampled_from([name[:at] + name[at + 1 :], name[:at] + "x" + name[at:], name[:at] + "x" + name[at + 1 :]])
    )
    if typo not in BLOCKS[block]:
        line = only(mistakes_in(**{block: {typo: None}}))
        assert line.startswith(f"{block}.{typo}: unknown setting (allowed: ")
        assert re.search(r"; did you mean \w+\?$", line)


@UNHURRIED
@given(JSON)
def test_no_args_raise_anything_but_a_config_error(args: Any) -> None:
    refuses_or_reads(args)


@UNHURRIED
@given(st.recursive(JSON, lambda inner: st.dictionaries(KNOWN_KEYS, inner, max_size=4), max_leaves=12))
def test_no_blocks_with_known_names_raise_anything_but_a_config_error(block: Any) -> None:
    refuses_or_reads(block)
    refuses_or_reads({"agents": {"a": block}, "gateways": [block], "distances": block, "clientRegions": block})
    refuses_or_reads({"agents": {"a": {"agent": "a:b", "regions": block, "loadBalancing": block, "scaling": block}}})


@UNHURRIED
@given(st.text(alphabet="ab: -[]{}\n\t&*!'\"#|>1_.<?%@`", max_size=60))
def test_no_text_makes_the_file_raise_anything_but_a_config_error(tmp_path_factory: Any, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, "utf-8")
    with pytest.raises(ConfigError):
        load(file)


def refuses_or_reads(args: Any) -> None:
    try:
        settings = parse(args, FOLDER)
    except ConfigError as error:
        assert error.mistakes
        assert all(line and line.isprintable() for line in error.mistakes)
    else:
        assert isinstance(settings, Settings)
        assert parse(settings.to_args(), FOLDER) == settings
