"""The rules from the core, as the running agent tells of them."""

from edge_agent.config import AgentConfig
from edge_agent.doctor.findings import Finding, good, skipped, warning
from edge_agent.health import Health

WHAT = "rules from the core"


def examine_rules(config: AgentConfig, health: Health | None) -> Finding:
    """Are they in force, all of them, and was anything refused?"""
    if config.policy is None:
        return skipped(WHAT, "no [policy]: every sample is kept")
    if health is None or health.policy is None:
        return skipped(WHAT, "the agent does not run")
    policy = health.policy
    told = f"version {policy.version} is in force" if policy.version else "none came yet"
    if policy.refused:
        fix = "is [policy] public_key the one that `catchment policy keygen` printed, and is this device among those it is for?"
        return warning(WHAT, f"{told}; {policy.refused} refused, the last: {policy.reason}", fix)
    if policy.suspended:
        names = "; ".join(f"{name}: {reason}" for name, reason in sorted(policy.suspended.items()))
        fix = "tell who wrote the policy; has this device the contract it was written for?"
        return warning(WHAT, f"{told}; not applied: {names}", fix)
    if policy.uninspected:
        names = "; ".join(f"{name}: {samples:,} samples" for name, samples in sorted(policy.uninspected.items()))
        return good(WHAT, f"{told}; could not inspect {names}")
    return good(WHAT, told)
