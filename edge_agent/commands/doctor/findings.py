"""Findings of a diagnosis, each with its remedy. No IO."""

from enum import StrEnum

import msgspec


class CheckResult(StrEnum):
    """The severity of a finding."""

    GOOD = "good"
    WARNING = "warning"  # works today
    FAILED = "failed"  # does not work
    SKIPPED = "skipped"  # could not be looked at; says why


class Finding(msgspec.Struct, frozen=True, rename={"message": "said"}):  # the name in --json
    """One thing looked at: what was seen, and where it is not good, what to do."""

    what: str
    verdict: CheckResult
    message: str
    fix: str = ""


class Diagnosis(msgspec.Struct, frozen=True):
    """All findings about one device."""

    device: str
    findings: tuple[Finding, ...]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing failed; warnings are allowed."""
        return not any(finding.verdict is CheckResult.FAILED for finding in self.findings)


def good(what: str, message: str) -> Finding:
    """As it should be."""
    return Finding(what, CheckResult.GOOD, message)


def warning(what: str, message: str, fix: str) -> Finding:
    """Works today."""
    return Finding(what, CheckResult.WARNING, message, fix)


def failed(what: str, message: str, fix: str) -> Finding:
    """Does not work."""
    return Finding(what, CheckResult.FAILED, message, fix)


def skipped(what: str, message: str) -> Finding:
    """Not looked at."""
    return Finding(what, CheckResult.SKIPPED, message)
