"""Errors of the shared language. All mean: this text or these bytes do not say what they must; refuse them with the reason."""


class SchemaError(ValueError):
    """A value from outside breaks the shared language. The message says which one and what would be accepted."""


class IdError(SchemaError):
    """A device id, stream name or digest is not of its form."""


class TopicError(SchemaError):
    """A topic is not one of ours, or carries an id that is not of its form."""


class EnvelopeError(SchemaError):
    """An envelope's properties are missing, malformed or above a limit."""


class ContractError(SchemaError):
    """A contract document contradicts itself or asks for something the subset we support does not have."""


class PolicyDocumentError(SchemaError):
    """A policy document is malformed."""


class DocumentError(SchemaError):
    """A signed document is malformed, ambiguous, of another kind, or needs a reader that knows more."""


class EdgeRuleError(SchemaError):
    """A compiled rule for a device holds what the core does not write, or samples do not fit it."""
