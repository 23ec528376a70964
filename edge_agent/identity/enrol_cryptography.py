"""Keys and requests by the `cryptography` library. The only module of the agent that needs the `enrol` extra."""

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edge_agent.errors import ConfigError
from schemas.ids import DeviceId


class LibraryKeysmith:
    """Makes P-256 keys and requests."""

    def new_key(self) -> bytes:
        """A new key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())

    def request(self, key: bytes, device: DeviceId) -> bytes:
        """A request to sign, in this device's name, as PEM.

        Raises:
            ConfigError: the key is none, or of another kind.
        """
        try:
            loaded = serialization.load_pem_private_key(key, password=None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"the key that is there is no private key in PEM: {error}; give another path with --key") from error
        if not isinstance(loaded, ec.EllipticCurvePrivateKey):
            raise ConfigError("the key that is there is not of an elliptic curve; give another path with --key")
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, str(device))])
        request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(loaded, hashes.SHA256())
        return request.public_bytes(serialization.Encoding.PEM)
