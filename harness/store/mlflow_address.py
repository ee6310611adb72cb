"""The address of an MLflow server or database: timeouts, and messages without credentials.

MLflow's client alone decides what an address means: credentials in it or in the environment, certificates, proxies,
Databricks profiles. Nothing here connects to a server by itself.
"""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator

from harness.commands import same_command, without_credentials
from harness.errors import UserError

LIMITS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "8",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
"""Environment variables of MLflow during an import, unless the user has set them: a silent server is given up in less than
20 s, instead of several minutes."""

_DATABASES = ("sqlite", "mysql", "postgresql", "mssql")
_SECRETS = ("MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "DATABRICKS_TOKEN", "DATABRICKS_CLIENT_SECRET")
_FOREIGN = {"mlflow", "sqlalchemy", "alembic", "requests", "urllib3", "databricks"}
_NOISY = ("alembic", "mlflow", "sqlalchemy", "urllib3", "databricks")
_LONGEST_REASON = 200

_REASONS = (
    (re.compile(r"(?:read timed out|connect timeout|timed out)", re.I), "no answer in time"),
    (re.compile(r"\[Errno -?\d+\] ([^'\")\]]+)"), "{}"),
    (re.compile(r"certificate verify failed: ([^(']+)"), "certificate: {}"),
    (re.compile(r"too many (\d{3}) error responses"), "it answers {}"),
    (re.compile(r"failed with error code (\d{3})"), "it answers {}"),
    (re.compile(r"response body was not in a valid JSON format"), "it does not answer like MLflow"),
)
"""Short replacements for the long messages of MLflow's HTTP client."""
_SILENT = re.compile(r"timed out|\[Errno -?\d+\]|connect timeout", re.I)


def is_database(uri: str) -> bool:
    """Whether MLflow opens a database itself instead of asking a server with its own artifact storage."""
    return uri.partition(":")[0].partition("+")[0] in _DATABASES


def shown(uri: str) -> str:
    """The address without user name and password."""
    return without_credentials(uri)


def mlflow_error(uri: str, error: Exception) -> UserError:
    """One line about an error of MLflow, its HTTP client or its database, without any secret."""
    text = " ".join((str(error).strip() or type(error).__name__).split())
    known = _REASONS if is_foreign(error) else ()
    reason = next((form.format(*match.groups()) for key, form in known if (match := key.search(text))), text).strip()
    reason = without_credentials(reason)
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        reason = reason.replace(secret, "***")
    if len(reason) > _LONGEST_REASON:
        reason = f"{reason[:_LONGEST_REASON]}…"
    if isinstance(error, ModuleNotFoundError):
        fix = f"install the Python package that provides {error.name}, and then: {same_command()}"
    elif is_database(uri):
        fix = f"repair or remove it, no results are lost, and then: {same_command()}"
    elif reason.endswith((" 401", " 403")):
        fix = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, to what the server accepts"
    else:
        own = same_command(tracking_uri=None)
        fix = f"start or repair it, or write mlflow.db in the store: env -u MLFLOW_TRACKING_URI {own}"
    if is_foreign(error) and _SILENT.search(text) and not is_database(uri):
        return UserError(f"no MLflow server responds at {shown(uri)} ({reason})", fix=fix)
    return UserError(f"MLflow at {shown(uri)} reported an error: {reason}", fix=fix)


def is_foreign(error: Exception) -> bool:
    """Whether an error comes from MLflow or its dependencies and not from this project."""
    return type(error).__module__.partition(".")[0] in _FOREIGN


@contextlib.contextmanager
def patient(uri: str) -> Iterator[None]:
    """Within the block, MLflow gives up early and quietly, and its errors are one line each."""
    limits = {name: value for name, value in LIMITS.items() if name not in os.environ}
    os.environ.update(limits)
    try:
        with _quiet():
            yield
    except Exception as error:
        if not is_foreign(error):
            raise
        raise mlflow_error(uri, error) from error
    finally:
        for name in limits:
            os.environ.pop(name, None)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide MLflow's migration logs, hints and warnings, and disable its telemetry."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow  # noqa: F401 (reads the variable above and sets log levels, so import it first)

    loggers = [logging.getLogger(name) for name in _NOISY]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Unverified HTTPS request")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
