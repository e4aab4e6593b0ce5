"""Makes keys for the tests, into the folder named as the argument: an RSA key for a service account (account.pem, its
public half account.der), and a certificate authority (ca.pem) with a certificate of its (cert.pem, key.pem) for
tls.example and 127.0.0.1."""

import datetime
import ipaddress
import pathlib
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

folder = pathlib.Path(sys.argv[1])


def write_key(name, key):
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / name).write_bytes(encoded)


def certificate(subject, issuer, issuer_key, public_key, *extensions):
    today = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]),
        public_key,
        x509.random_serial_number(),
        today - datetime.timedelta(days=1),
        today + datetime.timedelta(days=7),
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


account = rsa.generate_private_key(public_exponent=65537, key_size=2048)
write_key("account.pem", account)
public = account.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.PKCS1)
(folder / "account.der").write_bytes(public)

ca_key = ec.generate_private_key(ec.SECP256R1())
authority = x509.BasicConstraints(ca=True, path_length=0)
(folder / "ca.pem").write_bytes(certificate("test ca", "test ca", ca_key, ca_key.public_key(), (authority, True)))
key = ec.generate_private_key(ec.SECP256R1())
write_key("key.pem", key)
names = x509.SubjectAlternativeName([x509.DNSName("tls.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
(folder / "cert.pem").write_bytes(certificate("tls.example", "test ca", ca_key, key.public_key(), (names, False)))
