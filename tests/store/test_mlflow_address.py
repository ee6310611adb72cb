"""Addresses of MLflow servers: what MLflow accepts works, nothing waits for minutes, and no secret is shown."""

import base64
import http.server
import shutil
import ssl
import subprocess
import threading

import pytest

from harness.commands import COMMAND, without_credentials
from harness.errors import UserError
from harness.store.mlflow_address import LIMITS, is_database, shown
from harness.store.tracking import SyncResult, sync
from tests.helpers.fake_store import FakeStore

SECRET = "hunter2"


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    fake = FakeStore(tmp_path_factory.mktemp("store"))
    return fake.write_suite(methods=("none",), models=("tiny/llama",), data=("zsre",)).root


@pytest.fixture
def serve(monkeypatch):
    """Start a server that answers every request with `status`, or never; returns its port and the headers it received."""
    for name in (
        "MLFLOW_TRACKING_URI",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "MLFLOW_TRACKING_TOKEN",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    servers, released = [], threading.Event()

    def start(status=500, context=None):
        headers = []

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                headers.append(dict(self.headers))
                if status is None:
                    released.wait()
                    return
                self.send_response(status)
                self.end_headers()
                self.wfile.write(f"<html>not for {self.headers.get('Authorization')}</html>".encode())

            do_POST = do_GET

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server.server_address[1], headers

    yield start
    released.set()
    for server in servers:
        server.shutdown()
        server.server_close()


def refusal(store, uri):
    with pytest.raises(UserError) as caught:
        sync(store, tracking_uri=uri)
    assert "\n" not in str(caught.value)
    assert SECRET not in str(caught.value)
    assert not any(SECRET.encode() in file.read_bytes() for file in store.rglob("*") if file.is_file())
    return str(caught.value)


@pytest.mark.parametrize(
    ("status", "words"), [(500, "it answers 500"), (None, "no MLflow server responds"), (404, "it answers 404")]
)
def test_a_server_that_fails_or_is_silent_is_one_line(status, words, serve, store):
    port, _ = serve(status)
    assert words in refusal(store, f"http://127.0.0.1:{port}")


def test_the_suggestion_to_write_into_the_store_names_no_other_address(serve, store, monkeypatch):
    uri = f"http://127.0.0.1:{serve(500)[0]}"
    monkeypatch.setenv(COMMAND, f"python -m harness sync --tracking-uri {uri} --store results")
    assert refusal(store, uri).endswith("env -u MLFLOW_TRACKING_URI python -m harness sync --store results")


def test_the_command_that_opens_a_database_is_quoted():
    assert (
        "--backend-store-uri 'sqlite:////my results/mlflow.db'  "
        in SyncResult(*(0, 0, 0, ()), "sqlite:////my results/mlflow.db").ui_command
    )


def test_by_default_a_silent_server_is_given_up_within_20_seconds():
    timeout, retries, factor = (int(value) for value in LIMITS.values())
    assert timeout * (retries + 1) + factor * retries < 20


def test_credentials_in_the_address_reach_the_server_and_are_never_shown(serve, store):
    port, headers = serve(403)
    line = refusal(store, f"http://me:{SECRET}@127.0.0.1:{port}")
    assert headers[0]["Authorization"] == f"Basic {base64.b64encode(f'me:{SECRET}'.encode()).decode()}"
    assert f"http://***@127.0.0.1:{port}" in line
    assert "MLFLOW_TRACKING_USERNAME" in line


def test_a_token_in_the_environment_reaches_the_server_and_is_not_echoed(serve, store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", SECRET)
    port, headers = serve(418)
    refusal(store, f"http://127.0.0.1:{port}")
    assert headers[0]["Authorization"] == f"Bearer {SECRET}"


def test_a_proxy_is_asked_for_a_server_that_is_behind_it(serve, store, monkeypatch):
    port, headers = serve(500)
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{port}")
    assert "it answers 500" in refusal(store, "http://mlflow.invalid")
    assert headers[0]["Host"] == "mlflow.invalid"


def test_a_certificate_is_checked_unless_the_environment_says_otherwise(serve, store, monkeypatch, tmp_path):
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    command = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    port, _ = serve(500, context)
    uri = f"https://127.0.0.1:{port}"
    assert "certificate: self-signed" in refusal(store, uri)
    monkeypatch.setenv("MLFLOW_TRACKING_SERVER_CERT_PATH", str(tmp_path / "cert.pem"))
    assert "it answers 500" in refusal(store, uri)
    monkeypatch.delenv("MLFLOW_TRACKING_SERVER_CERT_PATH")
    monkeypatch.setenv("MLFLOW_TRACKING_INSECURE_TLS", "true")
    assert "it answers 500" in refusal(store, uri)


def test_databricks_without_a_configuration_is_one_line(store, monkeypatch, tmp_path):
    monkeypatch.setenv("DATABRICKS_CONFIG_FILE", str(tmp_path / "none"))
    assert "databricks" in refusal(store, "databricks")


@pytest.mark.parametrize(
    ("uri", "text"),
    [
        (f"http://me:{SECRET}@host:5000/a", "http://***@host:5000/a"),
        (f"postgresql://me:{SECRET}@host/db", "postgresql://***@host/db"),
        (f"http://me:p@{SECRET}@host", "http://***@host"),
        ("sqlite:////home/me@work/mlflow.db", "sqlite:////home/me@work/mlflow.db"),
    ],
)
def test_an_address_is_shown_without_user_name_and_password(uri, text):
    assert shown(uri) == text
    assert without_credentials(f"run --to '{uri}'") == f"run --to '{text}'"


def test_artifacts_of_a_database_are_in_the_store_and_those_of_a_server_are_its_own():
    assert is_database("sqlite:///a.db")
    assert is_database("mysql+pymysql://host/db")
    assert not any(map(is_database, ("http://host", "https://host", "databricks", "databricks://profile")))
