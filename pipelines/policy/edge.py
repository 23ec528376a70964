"""The device's part of the policies in force: compiled for sqlite3, numbered, signed. No network.

A device never goes back to a lower version, so the number is kept in the lake and grows whenever the rules change.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from pipelines.contracts.registry import ContractSet
from pipelines.director import DocumentSigner
from pipelines.errors import CorruptLakeError, ExpressionError, NotFoundError, RefusedError
from pipelines.expressions.expression import compile_expression, rule_columns
from pipelines.inspect.columns import steps_of
from pipelines.lake.lake import Lake
from pipelines.policy.documents import FOLDER
from schemas.chip_contract import is_chip_contract, slide_stream
from schemas.contract import Column, ColumnType
from schemas.edge_policy import (
    EdgeAction,
    EdgeInspect,
    EdgePolicy,
    EdgeRule,
    EdgeUpload,
    SignedEdgePolicy,
    encode_edge_policy,
    encode_policy_message,
    rules_of,
    signing_bytes,
    upload_columns,
)
from schemas.errors import PolicyDocumentError
from schemas.inspectors import VERSIONS, device_columns
from schemas.policy import InspectStep, KeepRule, Policy, PriorityRule, SampleRule
from schemas.signed_document import EVERY_DEVICE, Addressees, Document, DocumentKind, encode_body

_ID_CHARS = 50


class Numbered(msgspec.Struct, frozen=True):
    """The version that devices were last given, and the hash of its rules."""

    version: int
    rules: str


def edge_rules(policies: Sequence[Policy], contracts: ContractSet) -> dict[str, tuple[EdgeRule, ...]]:
    """Every stream's rules, in the order in which a device asks them: all keep, then all sample, then all priority.

    Raises:
        ExpressionError: a rule does not compile, or uses what a device does not have; the message names policy and rule.
        NotFoundError: there is no contract for one of the streams.
        RefusedError: one of the streams is of chips, which no device has.
    """
    found: dict[str, list[EdgeRule]] = {}
    for kind in (KeepRule, SampleRule, PriorityRule):
        for policy in sorted(policies, key=lambda each: each.id):
            rules = [each for each in (*policy.keep, *policy.sample, *policy.priority) if isinstance(each, kind)]
            for stream in policy.streams if rules else ():
                columns = _columns(policy, stream, contracts)
                made = found.setdefault(stream, [])
                made.extend(_compiled(policy, stream, rule, place, columns) for place, rule in enumerate(rules, 1))
    return {stream: tuple(rules) for stream, rules in sorted(found.items())}


def edge_inspectors(policies: Sequence[Policy], streams: dict[str, tuple[EdgeRule, ...]]) -> dict[str, tuple[EdgeInspect, ...]]:
    """Return the steps that devices must compute for the rules of each stream: those whose columns a rule reads."""
    found: dict[str, tuple[EdgeInspect, ...]] = {}
    for stream, rules in streams.items():
        read = {name for rule in rules for name in rule.columns}
        steps = [step for step in steps_of(policies, stream) if any(column.name in read for column in _on_device(step))]
        requested = [EdgeInspect(step.use, VERSIONS[step.use], str(step.options.get("column", ""))) for step in steps]
        if requested:
            found[stream] = tuple(dict.fromkeys(requested))
    return found


def edge_uploads(policies: Sequence[Policy], contracts: ContractSet) -> dict[str, EdgeUpload]:
    """Which samples of each stream are sent within a budget.

    Raises:
        NotFoundError: there is no contract for one of the streams.
        RefusedError: two policies have a budget for one stream, or its contract lacks a column.
    """
    found: dict[str, EdgeUpload] = {}
    for policy in sorted(policies, key=lambda each: each.id):
        for stream in policy.streams if policy.upload is not None else ():
            assert policy.upload is not None, "asked just above"
            if stream in found:
                raise RefusedError(
                    f"policy {policy.id}: another policy has an upload budget for {stream} already; keep one of them"
                )
            columns = _columns(policy, stream, contracts)
            if missing := [name for name in upload_columns(policy.upload) if name not in columns]:
                raise RefusedError(
                    f"policy {policy.id}: the contract of {stream} lacks {', '.join(missing)}; add it to the contract"
                )
            found[stream] = policy.upload
    return found


def numbered_policy(
    lake: Lake,
    streams: dict[str, tuple[EdgeRule, ...]],
    issued_ms: int,
    inspect: dict[str, tuple[EdgeInspect, ...]] | None = None,
    uploads: dict[str, EdgeUpload] | None = None,
) -> EdgePolicy:
    """The rules, and what they need computed, with their version: that of the last time if they are the same, else the next.

    Raises:
        CorruptLakeError: the number cannot be read.
        RefusedError: there are too many rules for one stream.
        ConflictError: somebody else has just numbered other rules.
    """
    content: object = (streams, inspect) if inspect else streams
    if uploads:
        content = (content, uploads)
    digest = hashlib.sha256(msgspec.json.encode(content)).hexdigest()
    last = _last(lake)
    version = last.version if last.rules == digest else last.version + 1
    try:
        policy = EdgePolicy(version, issued_ms, streams, inspect=inspect or {}, uploads=uploads or {})
    except PolicyDocumentError as error:
        raise RefusedError(f"{error}; put fewer device rules in force") from error
    if version != last.version:
        path = _number_path(lake)
        path.parent.mkdir(parents=True, exist_ok=True)
        before = msgspec.json.encode(last) if last.version else None
        lake.exchange(path, before, msgspec.json.encode(Numbered(version, digest)))
    return policy


def signed_message(policy: EdgePolicy, signer: DocumentSigner, expires_ms: int | None = None) -> bytes:
    """The message for `down/<device>/policy`: a signed document, and next to it the form that the release before reads.

    Args:
        policy: what to sign; its version is the document's counter.
        signer: whose keys sign it. The older form is signed by the first of them.
        expires_ms: when devices stop taking it; None: never.

    Raises:
        RefusedError: it is too large for a message.
    """
    to = Addressees(policy.devices) if policy.devices else Addressees(cohorts=(EVERY_DEVICE,))
    document = Document(
        kind=DocumentKind.EDGE_POLICY.value,
        counter=policy.version,
        issued_ms=policy.issued_ms,
        to=to,
        body=encode_body(rules_of(policy)),
        expires_ms=expires_ms,
    )
    text = encode_edge_policy(policy)
    older = SignedEdgePolicy(text, signer.sign_bytes(signing_bytes(text)).hex())
    try:
        return encode_policy_message(signer.sign(document), older)
    except PolicyDocumentError as error:
        raise RefusedError(f"{error}; put fewer device rules in force") from error


def _columns(policy: Policy, stream: str, contracts: ContractSet) -> dict[str, ColumnType]:
    contract = contracts.get(stream, None)
    if contract is None:
        raise NotFoundError(f"policy {policy.id}: there is no contract for stream {stream!r}")
    if is_chip_contract(contract):
        raise RefusedError(
            f"policy {policy.id}: {stream} is made in the core, so no device can keep, sample or rank it; "
            f"write these rules for {slide_stream(stream)}"
        )
    given = [column for step in steps_of([policy], stream) for column in _on_device(step)]
    return {**{column.name: column.type for column in given}, **rule_columns(contract)}


def _on_device(step: InspectStep) -> tuple[Column, ...]:
    """The columns of a step that a device gives, too; a user's own runs in the core alone."""
    return () if step.columns else device_columns(step.use)


def _compiled(
    policy: Policy, stream: str, rule: KeepRule | SampleRule | PriorityRule, place: int, columns: dict[str, ColumnType]
) -> EdgeRule:
    kind = type(rule).__name__.removesuffix("Rule").lower()
    try:
        compiled = compile_expression(rule.when, columns, allow_labels=True).to_edge()
    except ExpressionError as error:
        raise ExpressionError(f"policy {policy.id}, {kind} rule {place}, stream {stream}: {error}") from error
    action, more = _action(rule)
    name = f"{policy.id[:_ID_CHARS]}-{kind}-{place}"
    return EdgeRule(name, compiled.sql, action, compiled.parameters, columns=compiled.columns, **more)


def _action(rule: KeepRule | SampleRule | PriorityRule) -> tuple[EdgeAction, dict[str, Any]]:
    if isinstance(rule, KeepRule):
        return EdgeAction.KEEP, {}
    if isinstance(rule, PriorityRule):
        return EdgeAction.PRIORITY, {"priority": rule.priority}
    if rule.rate == 0:
        return EdgeAction.DROP, {"pressure": rule.pressure}
    return EdgeAction.SAMPLE, {"rate": rule.rate, "pressure": rule.pressure}


def _last(lake: Lake) -> Numbered:
    path = _number_path(lake)
    try:
        return msgspec.json.decode(lake.read(path), type=Numbered)
    except FileNotFoundError:
        return Numbered(0, "")
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(
            f"{path}: the number of the devices' rules cannot be read ({error}); restore it, or write a higher one"
        ) from error


def _number_path(lake: Lake) -> Path:
    return lake.root / FOLDER / "edge.json"
