"""What a flow collector keeps over a restart: its exporters' templates, as the position of its source. Pure.

Exporters repeat templates and sampling rates once in minutes; without this the flows of a restart's first minutes would
wait for the ones, and count too little without the others.
"""

from collections.abc import Mapping

import msgspec

from edge_agent.sources.netflow.export import Exporter, Template
from edge_agent.sources.netflow.sampling import Sampling
from edge_agent.sources.rejects import Rejects

# It is written to flash with each change of a template; who has more begins without the rest.
MAX_BYTES = 64 * 1024
UNREADABLE = "file: the stored templates are unreadable; each exporter's are waited for"

_OVERALL, _SAMPLER, _INTERFACE = "all", "sampler", "interface"

Key = tuple[str, bytes]


class KeptExporter(msgspec.Struct, frozen=True, array_like=True):
    """One exporter: who (address, version and domain), its templates, what its clock says of its own start, and its sampling.

    `sampling` holds (what, id, rate); a file of the release before has none.
    """

    peer: str
    domain: bytes
    templates: dict[int, tuple[tuple[tuple[int, int], ...], bool]]
    init_ms: int | None
    boot_ms: int | None
    sampling: list[tuple[str, int, float]] = []


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(list[KeptExporter])


def remember(exporters: Mapping[Key, Exporter]) -> bytes:
    """The templates of all exporters, at most `MAX_BYTES`."""
    kept: list[KeptExporter] = []
    size_bytes = 16
    for (peer, domain), exporter in sorted(exporters.items(), key=lambda item: not item[1].is_heard):
        templates = {id_: (template.fields, template.is_options) for id_, template in exporter.templates.items()}
        boot_ms = exporter.kept_boot_ms if exporter.boot_ms is None else exporter.boot_ms
        one = KeptExporter(peer, domain, templates, exporter.init_ms, boot_ms, _sampling(exporter.sampling))
        size_bytes += len(_ENCODER.encode(one))
        if size_bytes > MAX_BYTES:
            break
        kept.append(one)
    return _ENCODER.encode(kept)


def recall(position: bytes | None, rejects: Rejects) -> dict[Key, Exporter]:
    """The exporters as they were; none where nothing was kept, or it cannot be read."""
    if position is None:
        return {}
    try:
        kept = _DECODER.decode(position)
    except msgspec.MsgspecError:
        rejects.count(UNREADABLE)
        return {}
    return {(one.peer, one.domain): _exporter(one, rejects) for one in kept}


def _exporter(kept: KeptExporter, rejects: Rejects) -> Exporter:
    templates = {id_: Template(fields, is_options, is_kept=True) for id_, (fields, is_options) in kept.templates.items()}
    sampling = Sampling()
    for what, id_, rate in kept.sampling:
        if what == _OVERALL:
            sampling.overall = rate
        else:
            (sampling.samplers if what == _SAMPLER else sampling.interfaces)[id_] = rate
    return Exporter(rejects, templates, init_ms=kept.init_ms, kept_boot_ms=kept.boot_ms, sampling=sampling)


def _sampling(sampling: Sampling) -> list[tuple[str, int, float]]:
    overall = [] if sampling.overall is None else [(_OVERALL, 0, sampling.overall)]
    samplers = [(_SAMPLER, id_, rate) for id_, rate in sampling.samplers.items()]
    return [*overall, *samplers, *((_INTERFACE, id_, rate) for id_, rate in sampling.interfaces.items())]
