"""Tag the chips of a cut by the policies in force, before they are committed.

Stands alone because a run pins its policies and a cut does not: it takes those of the moment. So a file of rows is tagged in
its place, as often as a cut is tried again, until a table refers to it.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import structlog

from pipelines.contracts.registry import ContractSet
from pipelines.errors import PipelineError, RetryLaterError
from pipelines.imaging.store import ChipFile
from pipelines.inspect.code import store_code
from pipelines.inspect.columns import inspected, steps_of
from pipelines.inspect.stored import StoredInspector
from pipelines.inspect.suspended import SuspensionBook
from pipelines.labels.rule_columns import pin_labels, row_filler
from pipelines.lake.lake import Lake
from pipelines.policy.documents import policies_in_force
from pipelines.policy.guard import SandboxedTagger
from pipelines.policy.retag import RuleTagger, retag_file
from schemas.chip_contract import chip_stream
from schemas.policy import Policy

log = structlog.get_logger(__name__)


class ChipTagger:
    """The policies for chips. A file that is broken leaves those before it in force, as it does for runs.

    Args:
        lake: the lake, which holds the policies that were applied.
        folder: the folder of policies, or "".
    """

    def __init__(self, lake: Lake, folder: str) -> None:
        self._lake, self._folder = lake, folder
        self._policies: tuple[Policy, ...] | None = None

    def tag(self, stream: str, contracts: ContractSet, files: Sequence[ChipFile]) -> tuple[ChipFile, ...]:
        """Tag the rows of slides that were cut.

        Args:
            stream: of the slides.
            contracts: those in force.
            files: what became of the slides; a table must not refer to them yet.

        Returns:
            The same files, each with its new size.

        Raises:
            RetryLaterError: the policies cannot be read, and never could.
            PipelineError: a rule does not compile, or a file cannot be read.
        """
        contract = contracts.get(chip_stream(stream), None)
        policies = [policy for policy in self._in_force() if chip_stream(stream) in policy.streams]
        if contract is None or not policies or not any(file.rows for file in files):
            return tuple(files)
        judge = SandboxedTagger.compile(policies, inspected(contract, policies), book=SuspensionBook(self._lake))
        try:
            steps = StoredInspector(self._lake, contract, steps_of(policies, contract.name))
            pins = pin_labels(self._lake, judge.columns)
            tagger = RuleTagger(judge, row_filler(self._lake, judge.contract, judge.columns, pins, steps))
            return tuple(self._tagged(file, tagger) for file in files)
        finally:
            judge.close()

    def _tagged(self, file: ChipFile, tagger: RuleTagger) -> ChipFile:
        if file.rejection is not None:
            return file
        path = self._lake.root / file.path
        return dataclasses.replace(file, bytes=retag_file(path, path, tagger))

    def _in_force(self) -> tuple[Policy, ...]:
        try:
            found = policies_in_force(self._lake, self._folder)
            store_code(self._lake, found, Path(self._folder))
            self._policies = found
        except (PipelineError, OSError) as error:
            if self._policies is None:
                raise RetryLaterError(
                    f"chips wait for their tags: the policies cannot be read ({error}); correct them"
                ) from error
            log.warning("chip_policies_refused", reason=str(error))
        return self._policies
