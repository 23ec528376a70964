"""What is answered to OpenSSL when a private key is encrypted: that nobody is there to type its password."""

from edge_agent.errors import KeyEncryptedError


def refuse() -> str:
    """For `load_cert_chain`. Without it OpenSSL asks the terminal, and whoever called waits for an answer for ever.

    Raises:
        KeyEncryptedError: always.
    """
    raise KeyEncryptedError(
        "the private key is encrypted, and nobody is there to type its password; write it in clear, to a file of mode 0600:"
        " openssl pkey -in KEY -out PLAIN"
    )
