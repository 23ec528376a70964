"""The models of a device: each kept up to date by itself, and judged together about the samples of a stream."""

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import msgspec
from msgspec.structs import replace

from catchment.runtime.clock import Clock
from catchment.runtime.worker.limits import MIB
from edge_agent.documents.gate import AdmittedDocument, DocumentInbox
from edge_agent.errors import ConfigError
from edge_agent.models.config import ModelConfig
from edge_agent.models.local_consumers import LocalAnswer, LocalConsumers
from edge_agent.models.prediction_queue import JudgedSamples, PredictionQueue
from edge_agent.models.stream_models import ModelOfStream, ModelsOfStream, in_order
from edge_agent.models.updater import ModelUpdater
from edge_agent.uplink.downlink import ModelRequest
from schemas.contract import Contract
from schemas.envelope import Properties
from schemas.model_tasks import PREDICTION_COLUMNS
from schemas.reported import ModelReport
from schemas.rollout import DesiredModels

_MAX_MODELS = 16


class SharedOrders:
    """One inbox of orders for several models: each is given every order that is taken, once.

    Args:
        inbox: decides about orders.
    """

    def __init__(self, inbox: DocumentInbox[DesiredModels]) -> None:
        self._inbox = inbox
        self._lock = threading.Lock()
        self._newest: AdmittedDocument[DesiredModels] | None = None
        self._count = 0

    def view(self) -> "OrdersView":
        """One model's view of the orders."""
        return OrdersView(self)

    def hand_in(self, body: bytes) -> None:
        """Take a message in, once."""
        self._inbox.hand_in(body)

    def after(self, seen: int) -> tuple[int, AdmittedDocument[DesiredModels] | None]:
        """Decide about what has come; the number of orders taken so far, and the newest if it came after the first `seen`."""
        with self._lock:
            admitted = self._inbox.take_admitted()
            if admitted is not None:
                self._newest, self._count = admitted, self._count + 1
            return self._count, (self._newest if self._count > seen else None)

    def is_due(self, seen: int) -> bool:
        """Whether there is an order that a model has not followed yet."""
        with self._lock:
            return self._count > seen or self._inbox.is_due


class OrdersView:
    """What one model sees of the orders."""

    def __init__(self, shared: SharedOrders) -> None:
        self._shared = shared
        self._seen = 0

    def hand_in(self, body: bytes) -> None:
        """Take a message in."""
        self._shared.hand_in(body)

    @property
    def is_due(self) -> bool:
        """Whether there is an order to follow."""
        return self._shared.is_due(self._seen)

    def take_admitted(self) -> AdmittedDocument[DesiredModels] | None:
        """The newest order, where it is news to this model."""
        self._seen, admitted = self._shared.after(self._seen)
        return admitted


class DeviceModels:
    """All models of a device. Methods may be called from any thread.

    Args:
        configs: one for each model.
        state_dir: the agent's folder.
        send_request: publishes a request to the model server.
        clock: time.
        orders: admits signed desired states; None: unsigned ones are followed.
        piece_timeout_s: how long one piece of a download may be under way.

    Attributes:
        updaters: model -> what keeps it up to date.

    Raises:
        ConfigError: two models have the same name or fill the same columns of a stream, or one cannot be set up.
    """

    def __init__(
        self,
        configs: Sequence[ModelConfig],
        state_dir: Path,
        send_request: Callable[[ModelRequest], None],
        clock: Clock,
        orders: DocumentInbox[DesiredModels] | None = None,
        piece_timeout_s: float = 5.0,
    ) -> None:
        check_models(configs)
        self._configs = {config.name: config for config in configs}
        shared = None if orders is None else SharedOrders(orders)
        self.updaters = {
            config.name: ModelUpdater(
                config, state_dir, send_request, clock, piece_timeout_s, None if shared is None else shared.view()
            )
            for config in configs
        }
        self._queues: dict[str, PredictionQueue] = {}
        self._consumers = {config.name: LocalConsumers(config.notify) for config in configs if config.notify}

    def predictor(self, contract: Contract) -> PredictionQueue | None:
        """The queue before the models of a contract's stream; None where no model looks at it."""
        stream = str(contract.name)
        configs = [config for config in self._configs.values() if stream in config.streams]
        if not configs:
            return None
        if stream not in self._queues:
            self._queues[stream] = PredictionQueue(
                f"predict-{stream}",
                ModelsOfStream(
                    [ModelOfStream(config, self.updaters[config.name].running) for config in in_order(configs)],
                    {column.name for column in contract.columns},
                ),
                max_waiting=min(config.max_waiting for config in configs),
                max_held_bytes=min(config.max_held_mib for config in configs) * MIB,
                waits=any(config.when_busy == "wait" for config in configs),
                on_answers=partial(self._notify, stream, [config for config in configs if config.notify]),
            )
        return self._queues[stream]

    def _notify(self, stream: str, configs: Sequence[ModelConfig], judged: JudgedSamples) -> None:
        """Give the answers to this device's own programs."""
        for config in configs:
            names = {self.updaters[config.name].running.column(name): name for name in PREDICTION_COLUMNS}
            for row, answer in zip(judged.rows, judged.answers, strict=True):
                columns = {names[name]: value for name, value in answer.items() if name in names}
                version = columns.pop("model_version", None)
                columns.pop("model_name", None)
                if isinstance(version, int):
                    time_us = judged.batch.event_time_us[row]
                    notice = LocalAnswer(stream, time_us, config.name, version, columns, judged.age_s * 1_000)
                    self._consumers[config.name].send(notice, judged.models_s * 1_000)

    def on_desired(self, body: bytes) -> None:
        """Take in a desired state from the core."""
        for updater in self.updaters.values():
            updater.on_desired(body)

    def on_piece(self, correlation: bytes, properties: Properties, body: bytes) -> None:
        """Take in a piece of a repository file; the model that did not ask for it skips it."""
        for updater in self.updaters.values():
            updater.on_piece(correlation, properties, body)

    def run_forever(self, spawn: Callable[[str, Callable[[threading.Event], None]], object]) -> None:
        """Have each model looked after on a thread of its own, so that none waits while another loads."""
        for name, updater in self.updaters.items():
            spawn(f"model-{name}", partial(_look_after, updater))

    def report(self) -> tuple[ModelReport, ...]:
        """Report the models that run on this device."""
        return tuple(self._with_consumers(line) for updater in self.updaters.values() for line in updater.report())

    def _with_consumers(self, line: ModelReport) -> ModelReport:
        consumers = self._consumers.get(line.name)
        if consumers is None or isinstance(line.figures, msgspec.UnsetType):
            return line
        counts, delay_ms = line.figures.counts | consumers.counts, round(consumers.delay_p95_ms(), 2)
        return replace(line, figures=replace(line.figures, counts=counts, delay_p95_ms=delay_ms))

    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Model -> samples by what became of them."""
        return {
            name: updater.counts | (self._consumers[name].counts if name in self._consumers else {})
            for name, updater in self.updaters.items()
        }

    def close(self) -> None:
        """End what is under way, and the models' processes."""
        for waiting in self._queues.values():
            waiting.close()
        for updater in self.updaters.values():
            updater.close()
        for consumers in self._consumers.values():
            consumers.close()


def check_models(configs: Sequence[ModelConfig]) -> None:
    """See whether several models fit together.

    Raises:
        ConfigError: too many, two of the same name, or two that fill the same columns of a stream.
    """
    if len(configs) > _MAX_MODELS:
        raise ConfigError(f"[[model]]: {len(configs)} models; a device runs at most {_MAX_MODELS}")
    names = [config.name for config in configs]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError(f"[[model]]: {twice} is there twice; give each model one table")
    taken: dict[tuple[str, str], str] = {}
    for config in configs:
        for stream in config.streams:
            other = taken.setdefault((stream, config.prefix), config.name)
            if other != config.name:
                raise ConfigError(
                    f"model {config.name}: it and {other} fill the same columns of {stream}; give one a prefix, and the "
                    "contract columns that begin with it"
                )
        before = next((each for each in configs if each.name == config.after), None)
        if config.after and (before is None or not {*config.streams} <= {*before.streams}):
            raise ConfigError(f"model {config.name}: after {config.after!r} is no other model that looks at the same streams")
    in_order(configs)


def _look_after(updater: ModelUpdater, stop: threading.Event) -> None:
    while not stop.is_set():
        updater.run_once()
