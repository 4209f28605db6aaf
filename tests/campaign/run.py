"""A run from `up` to `down`: the part with faults, the wait until everything is back, the counted part, what is left."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.campaign import hosts, record
from tests.campaign.cluster import ROOT, Cluster, Settings
from tests.campaign.faults import FAULTS
from tests.campaign.faults.driver import Driver
from tests.campaign.load.arrivals import PATIENCE_S
from tests.campaign.plan import Plan
from tests.campaign.record import Facts, Lines, Record, write_facts
from tests.campaign.remains import files_left, orphans, tracebacks
from tests.campaign.sampler import Sampler
from tests.campaign.settle import tidy, wait_until_settled
from tests.campaign.stage import Stage

UP_S, DOWN_S = 240.0, 150.0
UNDER_WAY_S = 50.0  # for faults that are under way when the part with faults ends
QUIET_S = 4.0  # of load without faults
COUNTED_S = 14.0  # the part whose requests are compared with /metrics


class CampaignError(Exception):
    """The run itself failed: it says nothing about the product."""


class LoadProcess:
    """The load, in a process of its own; its record is `name`.jsonl."""

    def __init__(self, cluster: Cluster, name: str, seed: int, *options: str) -> None:
        self.name = name
        words = ["--port", str(cluster.port), "--out", str(cluster.folder / f"{name}.jsonl"), "--seed", str(seed)]
        command = [sys.executable, "-m", "tests.campaign.load", *words, "--rate", str(cluster.settings.rate), *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)

    def stop(self) -> None:
        """No further request begins."""
        self._process.terminate()

    def end(self, facts: Facts) -> None:
        """Wait until every request has ended."""
        try:
            output, _ = self._process.communicate(timeout=PATIENCE_S + 40)
        except subprocess.TimeoutExpired:
            raise CampaignError(f"the load ({self.name}) does not end") from None
        if self._process.returncode:
            raise CampaignError(f"the load ({self.name}) failed with exit status {self._process.returncode}")
        figures = json.loads(output)
        facts.sent[self.name] = figures["sent"]
        facts.client_lag = max(facts.client_lag, figures["lag"])

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.communicate()


class Run:
    """`progress` gets a line for everything that begins."""

    def __init__(self, folder: Path, plan: Plan, settings: Settings, progress: Callable[[str], None] = print) -> None:
        self.folder, self._plan, self._progress = folder, plan, progress
        self._cluster = Cluster(folder, settings)
        self._facts = Facts(plan.seed, plan.seconds, settings.facts, commit=_commit(), machine=_machine())
        self._facts.date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._loads: list[LoadProcess] = []
        self._hosts: hosts.Hosts | None = None
        self._session = ""  # Ray's name of it

    def __call__(self) -> None:
        """Raises CampaignError. Whatever happens, the cluster is taken down."""
        self._cluster.prepare()
        self._plan.write(self.folder / record.PLAN)
        try:
            self._up()
            sampler = Sampler(self._cluster)
            sampler.start()
            try:
                self._part_with_faults(sampler)
                self._settle()
                if self._facts.settled:
                    self._part_that_is_counted()
                    time.sleep(1.5)  # a last sample, with nothing in flight
                self._last_look()
                if not sampler.is_alive():
                    raise CampaignError("the sampler has ended early")
            finally:
                sampler.close()
        finally:
            self._down()

    def _up(self) -> None:
        if self._cluster.settings.network:
            if why := hosts.missing():
                raise CampaignError(f"no host for each region: {why}")
            self._hosts = hosts.Hosts(self._cluster)
            self._progress("a host for each region")
            self._hosts.start()
        self._progress("up")
        status, output = self._cluster.run("up", timeout=UP_S)
        if status:
            raise CampaignError(f"`swiftclaw up` failed with exit status {status}:\n{output}")
        self._session = next((one.resolve().name for one in self.folder.glob("*/session_latest")), "")

    def _load(self, name: str, *options: str) -> LoadProcess:
        load = LoadProcess(self._cluster, name, self._plan.seed, *options)
        self._loads.append(load)
        return load

    # --- the parts --------------------------------------------------------------------------------------------------

    def _part_with_faults(self, sampler: Sampler) -> None:
        time.sleep(1)
        stage, faults = Stage(self._cluster, sampler), Lines(self.folder / f"{record.FAULTS}.jsonl")
        driver = Driver(stage, faults, FAULTS, self._progress)
        load = self._load(record.REQUESTS, "--prefix", "r")
        self._facts.began = time.monotonic()
        self._progress(f"load: {self._cluster.settings.rate:g} requests per second; {len(self._plan.faults)} faults")
        try:
            driver.run(self._plan, self._facts.began)
            self._progress("no more faults; waiting for those under way")
        finally:
            driver.finish(UNDER_WAY_S)
        self._facts.faults_over = time.monotonic()
        self._facts.probes_sent = sum(fault.detail.get("requests", {}).get("sent", 0) for fault in driver.faults)
        time.sleep(QUIET_S)
        load.stop()
        load.end(self._facts)

    def _settle(self) -> None:
        for command, status, output in tidy(self._cluster):
            self._progress(f"{command}: exit status {status}")
            (self.folder / record.COMMANDS / f"settle-{command}.txt").write_text(f"{output}\n-> {status}\n")
        began = time.monotonic()
        self._facts.unsettled = wait_until_settled(self._cluster)
        self._facts.settled, self._facts.settled_after = not self._facts.unsettled, round(time.monotonic() - began, 1)
        self._progress(
            f"settled after {self._facts.settled_after} s" if self._facts.settled else f"NOT settled: {self._facts.unsettled}"
        )

    def _part_that_is_counted(self) -> None:
        """Nothing happens but that one gateway is killed: what /metrics counts is what clients got."""
        facts, cluster = self._facts, self._cluster
        facts.counted_before = cluster.counted()
        load = self._load(record.COUNTED, "--prefix", "n", "--seconds", str(COUNTED_S), "--well-behaved")
        time.sleep(COUNTED_S / 2)
        pids = sorted(cluster.forwarding())
        pid = pids[self._plan.seed % len(pids)]
        if cluster.owns(pid):
            facts.counted_kill = {"pid": pid, "at": time.monotonic()}
            os.kill(pid, signal.SIGKILL)
        load.end(facts)
        facts.counted_after = self._steady_counts()

    def _steady_counts(self) -> dict[str, float]:
        """What /metrics counts when all gateways are back and nothing is in flight."""
        ends, last = time.monotonic() + 25, dict[str, float]()
        while time.monotonic() < ends:
            time.sleep(1.5)
            with contextlib.suppress(OSError, ValueError):
                counted, cluster = self._cluster.counted(), self._cluster
                quiet = not any(row["active_connections"] for row in cluster.instances())
                if counted == last and quiet and len(cluster.gateways()) == cluster.settings.gateway_processes:
                    break
                last = counted
        return last

    def _last_look(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._facts.events = self._cluster.api("/api/events?limit=2000")
            self._facts.status = self._cluster.api("/api/status")

    # --- the end ----------------------------------------------------------------------------------------------------

    def _down(self) -> None:
        self._progress("down")
        facts, began = self._facts, time.monotonic()
        for load in self._loads:
            load.kill()
        try:
            facts.down_status, facts.down_output = self._cluster.run("down", timeout=DOWN_S)
            facts.down_seconds = round(time.monotonic() - began, 1)
        finally:
            if self._hosts is not None:
                self._hosts.close()
            facts.orphans = orphans(self._cluster)
            facts.files_left = files_left(self.folder, self._session)
            self._cluster.close()
            facts.tracebacks = tracebacks(self._cluster.logs)
            write_facts(self.folder, facts)
            facts.entries = Record.from_folder(self.folder).entries
            write_facts(self.folder, facts)


def _commit() -> str:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    with contextlib.suppress(OSError):
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    return ""


def _machine() -> str:
    return f"{platform.system()} {platform.release()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
