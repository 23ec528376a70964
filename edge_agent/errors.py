"""Every error the agent raises, in families by what the caller does next."""


class UninspectableError(Exception):
    """This value cannot be inspected here; the next may be."""


class AgentError(Exception):
    """Something of the agent's. The message says what to do next."""


class ConfigError(AgentError):
    """Stop and correct the configuration; the message names the file, the line where known, and the key."""


class NotFoundError(AgentError):
    """There is no such thing (envelope, spool)."""


class SourceError(AgentError):
    """A source failed: it is closed and built again after a while; other sources go on."""


class SourceEndedError(SourceError):
    """A source has come to its end (a replayed file is done): do not build it again."""


class SourceAgainError(SourceError):
    """A source's round is over, as it should be: build it again after a moment; it has not failed."""


class EncodingError(SourceError):
    """Reject the rows it is about: their values do not fit the contract's types, and never will."""


class UnredactableError(ValueError):
    """Drop the row: this cell or picture cannot be made harmless."""


class SpoolError(AgentError):
    """The spool could not do what was asked."""


class SpoolFullError(SpoolError):
    """Retry later: the quota or the disk is full and nothing may be evicted."""


class UplinkError(AgentError):
    """Something between agent and broker."""


class BrokerUnavailableError(UplinkError):
    """Retry: the broker cannot be reached or went away."""


class ModelError(AgentError):
    """Keep the old model: the new one is not installed."""


class UntrustedModelError(ModelError):
    """The signing keys do not vouch for it: tampered, rolled back, expired or foreign."""


class ModelUnfitError(ModelError):
    """It is vouched for but does not work here: refuse this version for good."""


class DocumentLaterError(AgentError):
    """Keep what is in force and try this document again later: its time has not come, or it could not be checked now."""


class ExpiredDocumentError(DocumentLaterError):
    """Keep what is in force: by this device's clock the document is too old to be taken. The clock may be what is wrong."""


class UntrustedDocumentError(AgentError):
    """Keep what is in force: the document is forged, malformed, a replay, or for other devices."""


class KeyEncryptedError(AgentError, OSError):
    """Write the private key in clear: nobody is there to type its password. As a file that cannot be read, it is tried again."""


class UnreadablePictureError(ModelError):
    """Skip this picture: it cannot be decoded, which says nothing about the model."""


class ModelBusyError(ModelError):
    """Go on without a prediction: the model's process is starting, or busy with other pictures."""


class ModelDiedError(ModelError):
    """Start the model's process again: it crashed, ran out of memory or took too long."""


class ModelStoppedError(ModelError):
    """Try again at the next start: the agent is stopping, which says nothing about the model."""


class RottenModelError(ModelError):
    """Fetch this version again: its bytes on disk are not those that were installed."""


class ModelNotWantedError(ModelError):
    """Leave it: the rollout was halted, or another version is wanted by now."""
