#!/bin/bash
# Strict verification in OpenSSL accepts a certificate of a CA without key usage when a server shows
# that very certificate, and refuses it when it shows one that the CA signed.
#
# Seen with Python 3.11 and OpenSSL 3.0 of Debian 12, and Python 3.13 and OpenSSL 3.5 of Debian 13,
# with trustme 1.2.1 and cryptography 50.0.2 from PyPI. X509_V_FLAG_X509_STRICT, which Python's default
# contexts set from 3.13 on, asks of a CA for the key usage that RFC 5280 demands. One would expect the
# answer for one CA certificate to be the same wherever it stands in a chain. But what is demanded of a
# CA is only looked at in chains of more than one certificate: whoever tries a client of today on the
# self-signed certificate itself learns nothing about what becomes of the certificates that it signs.
# (libnbd, QEMU and curl use libraries or defaults that accept both.)
#
# Output that was seen:
#     the CA's own certificate: accepted
#     one that it signed: CA cert does not include key usage extension
#
# Exits with 1 if this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

/usr/bin/python3 -m venv "$work/venv"
"$work/venv/bin/pip" --quiet --disable-pip-version-check install trustme==1.2.1 cryptography==50.0.2 2>/dev/null
"$work/venv/bin/python" - "$work" <<'PYTHON'
import ssl
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

print("Python", sys.version.split()[0], ssl.OPENSSL_VERSION)
work = Path(sys.argv[1])
key = ec.generate_private_key(ec.SECP256R1())
name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a CA")])
now = datetime.now(timezone.utc)
ca = (
    x509.CertificateBuilder()
    .subject_name(name)
    .issuer_name(name)
    .public_key(key.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - timedelta(days=1))
    .not_valid_after(now + timedelta(days=30))
    .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    .sign(key, SHA256())
    .public_bytes(Encoding.PEM)
)
secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
signed = trustme.CA.from_pem(ca, secret).issue_cert("localhost")
(work / "ca.pem").write_bytes(ca)
(work / "own.pem").write_bytes(ca + secret)
(work / "signed.pem").write_bytes(signed.private_key_and_cert_chain_pem.bytes())


def verdict(shown: str) -> str:
    client_context = ssl.create_default_context(cafile=work / "ca.pem")
    client_context.verify_flags |= ssl.VERIFY_X509_STRICT
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(work / shown)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(back, there, server_hostname="localhost")
    server = server_context.wrap_bio(there, back, server_side=True)
    for end in (client, server, client, server):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return error.verify_message
    return "accepted"


own, other = verdict("own.pem"), verdict("signed.pem")
print("the CA's own certificate:", own)
print("one that it signed:", other)
sys.exit((own, other) != ("accepted", "CA cert does not include key usage extension"))
PYTHON
echo 'as described'
