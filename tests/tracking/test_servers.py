"""Servers as they are shared: authentication, TLS, PostgreSQL; and that no secret is left anywhere."""

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from data_prep.contract.redaction import secret_values
from tests.processes import TINY_RUN, losses, run_command, user_error
from tests.tracking.servers import (
    MlflowServer,
    postgres,
    postgres_binaries,
    spooled_points,
    spooled_run,
    stored_points,
)

PASSWORD = "planted-admin-password"


def write_certificate(folder: Path) -> None:
    """``key.pem`` and ``cert.pem`` for 127.0.0.1, signed by nobody else."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=2))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    (folder / "cert.pem").write_bytes(certificate.public_bytes(pem))


@pytest.fixture(scope="module")
def secure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """MLflow's own basic authentication behind TLS with a certificate that nobody has signed."""
    folder = tmp_path_factory.mktemp("secure")
    write_certificate(folder)
    server = MlflowServer(
        folder, f"sqlite:///{folder / 'mlflow.db'}", "--app-name", "basic-auth",
        "--uvicorn-opts", "--ssl-keyfile key.pem --ssl-certfile cert.pem", scheme="https",
        MLFLOW_AUTH_ADMIN_PASSWORD=PASSWORD, MLFLOW_FLASK_SERVER_SECRET_KEY="planted-flask-key",
    )  # fmt: skip
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.slow
def test_login_refused_and_certificate_unknown_then_right(secure_server: MlflowServer, tmp_path: Path) -> None:
    run_dir = spooled_run(tmp_path, steps=3)
    address = {"MLFLOW_TRACKING_URI": secure_server.url, "MLFLOW_TRACKING_USERNAME": "admin"}
    certificate = {"MLFLOW_TRACKING_SERVER_CERT_PATH": str(Path(secure_server.store[10:]).with_name("cert.pem"))}
    login = {"MLFLOW_TRACKING_PASSWORD": PASSWORD}
    line = user_error("pipeline", "sync", "run", cwd=tmp_path, **address, **login)
    assert "certificate verify failed" in line
    line = user_error(
        "pipeline", "sync", "run", cwd=tmp_path, **address, **certificate, MLFLOW_TRACKING_PASSWORD="planted-wrong"
    )
    assert "401" in line
    assert "planted-wrong" not in line
    run_command("pipeline", "sync", "run", cwd=tmp_path, **address, **certificate, **login)
    assert stored_points(secure_server.store, "run") == spooled_points(run_dir)


@pytest.mark.long
def test_training_whose_login_is_refused_loses_nothing(
    secure_server: MlflowServer, tmp_path: Path, shard_folder: Path
) -> None:
    server = {
        "MLFLOW_TRACKING_URI": secure_server.url, "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_SERVER_CERT_PATH": str(Path(secure_server.store[10:]).with_name("cert.pem")),
    }  # fmt: skip
    argv = ["train", *TINY_RUN, "--data.path", str(shard_folder), "--run_dir", "trained", "--tracking.enabled", "true"]
    ended = run_command("pipeline", *argv, cwd=tmp_path, **server, MLFLOW_TRACKING_PASSWORD="planted-wrong")
    assert "narrowbert sync trained" in ended.stdout
    assert "401" in (tmp_path / "trained/logs/tracking.log").read_text()
    assert sorted(losses(tmp_path / "trained")) == list(range(1, 11))
    run_command("pipeline", "sync", "trained", cwd=tmp_path, **server, MLFLOW_TRACKING_PASSWORD=PASSWORD)
    assert stored_points(secure_server.store, "trained") == spooled_points(tmp_path / "trained")


@pytest.mark.long
@pytest.mark.skipif(postgres_binaries() is None, reason="PostgreSQL is not installed (apt-get install postgresql)")
def test_postgresql_behind_the_server(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    binaries = postgres_binaries()
    assert binaries is not None
    run_dir = spooled_run(tmp_path, **{"validation/loss": float("nan")})
    with postgres(binaries, tmp_path_factory.mktemp("postgres")) as store:
        server = MlflowServer(tmp_path, store)
        try:
            server.start()
            run_command("pipeline", "sync", "run", cwd=tmp_path, MLFLOW_TRACKING_URI=server.url)
            assert stored_points(store, "run") == spooled_points(run_dir)
            (run_dir / "tracking.offset").unlink()  # everything again: nothing may be there twice
            run_command("pipeline", "sync", "run", cwd=tmp_path, MLFLOW_TRACKING_URI=server.url)
            assert stored_points(store, "run") == spooled_points(run_dir)
        finally:
            server.stop()


@pytest.mark.slow
def test_no_planted_secret_is_left_anywhere(server: MlflowServer, tmp_path: Path, shard_folder: Path) -> None:
    planted = {
        "HF_TOKEN": "planted-hf-token", "AWS_SECRET_ACCESS_KEY": "planted/aws+key", "SLURM_JWT": "planted-slurm-jwt",
        "MLFLOW_TRACKING_PASSWORD": "planted-mlflow-password", "CUDA_API_KEY": "planted-cuda-key",
        "MLFLOW_TRACKING_URI": server.url.replace("//", "//bob:planted%40url-password@"),
        "MLFLOW_TRACKING_USERNAME": "bob", "NARROWBERT_NOTE": "postgresql://bob:planted-in-a-note@host/db",
    }  # fmt: skip
    argv = [
        "train", *TINY_RUN, "--data.path", str(shard_folder), "--run_dir", "run", "--tracking.enabled", "true",
        "--tracking.run_name", "https://bob:planted-in-config@host/x", "--tracking.experiment_name",
        "api_key=planted-in-name",
    ]  # fmt: skip
    printed = [run_command("pipeline", *argv, cwd=tmp_path, **planted)]  # the server is down: errors are logged
    server.start()
    printed.append(run_command("pipeline", "sync", "run", cwd=tmp_path, **planted))
    export = ["export", "run", "--output", "model", "--register", "safe"]
    printed.append(run_command("pipeline", *export, cwd=tmp_path, **planted))
    report = ["report", "run", "--output", "page.html", "--to_mlflow"]
    printed.append(run_command("pipeline", *report, cwd=tmp_path, **planted))
    server.stop()

    (tmp_path / "printed").write_text("".join(ended.stdout + ended.stderr for ended in printed))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    secrets = {value for value in secret_values(planted) if "planted" in value} | {
        "planted-in-config",
        "planted-in-name",
    }
    assert len(secrets) >= 9
    for path in files:
        content = path.read_bytes()
        assert [secret for secret in secrets if secret.encode() in content] == [], path
    names = {path.name for path in files}
    assert names >= {"tracking.log", "mlflow.db", "config.yaml", "trainer.json", "server.log", "page.html", "MLmodel"}
    # It was looked for in the right places: what is no secret is there.
    assert b"https://***@host/x" in (tmp_path / "run/config.yaml").read_bytes()
    assert b"MLFLOW_TRACKING_USERNAME" in (tmp_path / "run/tracking.json").read_bytes()
    assert b"MLflow: " in (tmp_path / "run/logs/tracking.log").read_bytes()
    run_command("pipeline", *argv, cwd=tmp_path, **planted)  # redacted as it is, the configuration is the same
