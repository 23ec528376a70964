"""The rules and orders from the core, as the running agent tells of them."""

from edge_agent.commands.doctor.findings import Finding, good, skipped, warning
from edge_agent.config import AgentConfig
from edge_agent.health.file import Health

WHAT = "rules from the core"
ORDERS = "orders from the core"


def examine_rules(config: AgentConfig, health: Health | None) -> Finding:
    """Are they in force, all of them, and was anything refused?"""
    if config.policy is None and config.director is None:
        return skipped(WHAT, "no [director] and no [policy]: every sample is kept")
    if health is None or health.policy is None:
        return skipped(WHAT, "the agent does not run")
    policy = health.policy
    told = f"version {policy.version} is in force" if policy.version else "none came yet"
    if policy.refused:
        fix = "is it signed by a key in [director] or [policy], and is this device among those it is for?"
        return warning(WHAT, f"{told}; {policy.refused} refused, the last: {policy.reason}", fix)
    if policy.suspended:
        names = "; ".join(f"{name}: {reason}" for name, reason in sorted(policy.suspended.items()))
        fix = "tell who wrote the policy; has this device the contract it was written for?"
        return warning(WHAT, f"{told}; not applied: {names}", fix)
    if policy.uninspected:
        names = "; ".join(f"{name}: {samples:,} samples" for name, samples in sorted(policy.uninspected.items()))
        return good(WHAT, f"{told}; could not inspect {names}")
    return good(WHAT, told)


def examine_orders(config: AgentConfig, health: Health | None) -> Finding:
    """Are the director's orders followed, and was one refused?"""
    if config.model is None:
        return skipped(ORDERS, "no [model]: nothing is ordered")
    if config.director is None:
        fix = "add the [director] table that `catchment director show` prints"
        return warning(ORDERS, "no [director]: this device runs what whoever keeps the broker orders, among signed models", fix)
    if health is None or not health.documents:
        return skipped(ORDERS, "the agent does not run")
    document = health.documents[0]
    state = f"counter {document.counter} was followed" if document.counter else "none came yet"
    if not document.reason:
        return good(ORDERS, state)
    fix = "compare [director] with `catchment director show`, and look at the clock; the core signs again by itself"
    return warning(ORDERS, f"{state}; {document.refused} refused; the last: {document.reason}", fix)
