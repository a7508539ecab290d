"""The story, act by act: the lab's model, five devices that live with it, the releases that follow, a new device.

Everything happens through commands, sockets and the REST API; this file only says in which order, and waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from sanderling.engine.inference import evaluate
from sanderling.engine.models import depthwise_cnn_1d
from sanderling.host.broker import available_kinds

from . import data
from .application import Application
from .fleet import Fleet
from .installation import MERGES, MODEL, DemoError, Installation, command, sanderling
from .processes import Processes
from .report import DeviceResult, Outcome
from .wearer import Wearer

#: Epochs of the lab's training. The lab has four people only; longer training fits them better and nobody else.
LAB_EPOCHS = 6
#: Seconds that each device's stream of windows is spread over.
STREAM_SECONDS = 60.0
#: Seconds after which the story ends with the releases that there are; and how many there must be then.
LONGEST, FEWEST_RELEASES = 150.0, 4


class Teller(Protocol):
    """Who shows the story while it happens."""

    def say(self, text: str) -> None:
        """A milestone."""

    def progress(self, wearers: list[Wearer]) -> None:
        """How far the devices are; called about twice a second."""


@dataclass
class Story:
    """One telling of it. `tell` goes through the acts; afterwards `outcome` has the figures."""

    installation: Installation
    processes: Processes
    teller: Teller
    broker: str = "auto"
    wearers: list[Wearer] = field(default_factory=list)
    before: dict[str, float] = field(default_factory=dict)
    releases: list[tuple[float, int]] = field(default_factory=list)
    began: float = 0.0

    def __post_init__(self) -> None:
        self.fleet = Fleet(self.installation)
        self._start = time.monotonic()
        self._trusted_key = ""

    def tell(self) -> Outcome:
        """All acts; raises `DemoError` (or the application's error) when one cannot be told."""
        self._raise_the_server()
        self._train_in_the_lab()
        self._install_the_devices()
        self._live_and_learn()
        after = {wearer.name: wearer.judge() for wearer in self.wearers}
        devices = [self._result(w, self.before[w.name], after[w.name]) for w in self.wearers]
        return Outcome(
            devices=devices,
            new_device=self._new_device(),
            releases=self.releases,
            broker=f"{self.broker} ({self.fleet.protocol()})",
            restarts=self.processes.restarts(),
            seconds=time.monotonic() - self._start,
        )

    # ---- acts

    def _raise_the_server(self) -> None:
        kinds = available_kinds()
        if self.broker == "auto" and kinds:
            self.broker = kinds[0]
        if self.broker not in kinds:
            raise DemoError(
                f"no MQTT broker ({self.broker}) on this machine: `apt install mosquitto` or "
                "`pip install 'sanderling[demo]'` (which brings amqtt)"
            )
        place = self.installation
        self.teller.say(f"broker: {self.broker} on port {place.broker_port}; server and live page: {place.address}")
        self._trusted_key = place.write_server()
        python = command()[0]
        self.processes.start(
            "broker",
            [python, "-m", "sanderling.host.broker", "--port", str(place.broker_port), "--kind", self.broker,
             "--directory", str(place.directory)],
        )  # fmt: skip
        self.processes.start("server", command("server", "run", "--config", str(place.server / "server.toml")))

    def _train_in_the_lab(self) -> None:
        folder = self.installation.directory / "lab"
        folder.mkdir()
        windows = data.lab()
        (folder / "lab.npz").write_bytes(windows.save())
        (folder / "anchor.npz").write_bytes(data.anchor(windows).save())
        (folder / "initial.onnx").write_bytes(depthwise_cnn_1d(kernel=7, seed=0))
        self.teller.say(
            f"lab: people 1 to 4, {len(windows)} windows; training version 1 with sanderling's own engine …"
        )
        began = time.monotonic()
        sanderling(
            "train", str(folder / "initial.onnx"), "--data", str(folder / "lab.npz"), "--out", str(folder / "v1.onnx"),
            "--memory-limit", "256MiB", "--epochs", str(LAB_EPOCHS), "--batch", "32", "--learning-rate", "0.002",
            "--seed", "0",
        )  # fmt: skip
        self.fleet.wait_until_up()
        sanderling(
            "model", "push", str(folder / "v1.onnx"), "--name", MODEL, "--anchor", str(folder / "anchor.npz"),
            "--proxy", str(folder / "lab.npz"), "--labels", ",".join(data.exercise_names()),
            "--server", self.installation.address, "--token-file", str(self.installation.token_file),
        )  # fmt: skip
        self.teller.say(f"version 1 trained in {time.monotonic() - began:.0f} s, signed and released")

    def _install_the_devices(self) -> None:
        for number in data.DEVICE_PEOPLE:
            self._start_agent(f"device-{number}")
        self.began = time.monotonic()
        self.releases.append((0.0, 1))
        for number in data.DEVICE_PEOPLE:
            wearer = Wearer(
                f"device-{number}", number, data.person(number), self._application(f"device-{number}"), self.began
            )
            self._until(wearer.application.ready, 45, f"{wearer.name} has not installed version 1", wearer.name)
            self.before[wearer.name] = wearer.judge()
            self.wearers.append(wearer)
        mean = 100 * sum(self.before.values()) / len(self.before)
        self.teller.say(f"five devices run version 1: {mean:.1f} % right on windows of people it has never seen")

    def _live_and_learn(self) -> None:
        self.teller.say("they predict, hear what was right, learn, and send deltas; the server merges and releases …")
        for wearer in self.wearers:
            wearer.live(STREAM_SECONDS)
        try:
            deadline = time.monotonic() + LONGEST
            while not self._everything_arrived():
                if time.monotonic() > deadline:
                    if len(self.releases) < FEWEST_RELEASES:
                        raise DemoError(
                            f"only {len(self.releases)} releases after {LONGEST:.0f} s; "
                            f"read {self.processes.log_of('server')} for why"
                        )
                    break
                self.teller.progress(self.wearers)
                time.sleep(0.5)
        finally:
            for wearer in self.wearers:
                wearer.stop()

    def _new_device(self) -> DeviceResult:
        name, number = f"device-{data.NEW_PERSON}", data.NEW_PERSON
        self.teller.say(f"{name} joins: a person whom neither the lab nor the fleet has ever seen")
        self._start_agent(name, learns=False)
        person = data.person(number)
        everything = data.together(person.seen, person.unseen)  # it has learned nothing: all are unseen
        wearer = Wearer(name, number, data.Person(person.seen, everything), self._application(name), self.began)
        self._until(wearer.application.ready, 45, f"{name} has not installed the fleet's model", name)
        after = wearer.judge()
        before = evaluate(self.fleet.model_file(1), everything.x, everything.y)
        return self._result(wearer, before, after)

    # ---- helpers

    def _everything_arrived(self) -> bool:
        """All merges are released, and every device has the last one, has learned from it and owes nothing."""
        for wearer in self.wearers:
            if wearer.failure is not None:
                raise wearer.failure
        version = self.fleet.current_version()
        if version > self.releases[-1][1]:
            self.releases.append((time.monotonic() - self.began, version))
            self.teller.say(f"version {version} released: what the devices learned, merged, distilled, signed")
        if version < 1 + MERGES or any(w.streamed < len(w.person.seen) for w in self.wearers):
            return False
        reports = [self._application(w.name).status() for w in self.wearers]
        return all(r["version"] == version and r["held_out_personal"] is not None and r["outbox"] == 0 for r in reports)

    def _result(self, wearer: Wearer, before: float, after: float) -> DeviceResult:
        report = wearer.application.status()
        return DeviceResult(
            name=wearer.name,
            person=wearer.number,
            accuracy_before=before,
            accuracy_after=after,
            version=int(report["version"]),
            serving=str(report["serving"]),
            training_peak=int(report["training_peak"]),
            memory_limit=int(report["memory_limit"]),
            delta_bytes=int(report["delta_bytes"]),
            float32_bytes=int(report["float32_bytes"]),
            deltas=int(report["deltas_sent"]),
            versions_installed=self.fleet.installed(wearer.name),
            curve=wearer.curve,
        )

    def _start_agent(self, name: str, learns: bool = True) -> None:
        configuration = self.installation.write_agent(name, self._trusted_key, learns)
        self.processes.start(name, command("agent", "run", "--config", str(configuration)))

    def _application(self, name: str) -> Application:
        return Application(self.installation.device(name) / "agent.sock", MODEL)

    def _until(self, condition: Callable[[], bool], seconds: float, complaint: str, process: str) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise DemoError(f"{complaint} within {seconds:.0f} s; read {self.processes.log_of(process)}")
            time.sleep(0.1)
